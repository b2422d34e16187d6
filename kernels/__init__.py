"""The leaf of the package: frozen values, the Triton kernels, one launch planner each.

Nothing here imports torch.nn, registers an op, touches a GPU or reads the environment, so that compile
workers start fast. Names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grouped_conv.kernels.config import ImplicitGemmConfig, KernelConfig, PackConfig, ReduceConfig
    from grouped_conv.kernels.device import DeviceSpec
    from grouped_conv.kernels.epilogue import ACTIVATIONS, Epilogue
    from grouped_conv.kernels.layout import Group, GroupLayout
    from grouped_conv.kernels.problem import ConvProblem
    from grouped_conv.kernels.separable_rules import SeparableConfig, SeparableProblem

ABI_VERSION = 1
"""Raised by hand whenever a kernel's results, arguments or speed change.

Recorded self-checks and timings of other versions are not trusted.
"""

_HOMES = {
    "ACTIVATIONS": "epilogue",
    "ConvProblem": "problem",
    "DeviceSpec": "device",
    "Epilogue": "epilogue",
    "Group": "layout",
    "GroupLayout": "layout",
    "ImplicitGemmConfig": "config",
    "KernelConfig": "config",
    "PackConfig": "config",
    "ReduceConfig": "config",
    "SeparableConfig": "separable_rules",
    "SeparableProblem": "separable_rules",
}

__all__ = [
    "ABI_VERSION",
    "ACTIVATIONS",
    "ConvProblem",
    "DeviceSpec",
    "Epilogue",
    "Group",
    "GroupLayout",
    "ImplicitGemmConfig",
    "KernelConfig",
    "PackConfig",
    "ReduceConfig",
    "SeparableConfig",
    "SeparableProblem",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
