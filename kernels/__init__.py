"""The leaf of the package: frozen values, the Triton kernels, one launch planner each.

Nothing here imports torch.nn, registers an op, touches a GPU or reads the environment, so that compile
workers start fast. Names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grouped_conv.kernels.config import ImplicitGemmConfig, KernelConfig, PackConfig, ReduceConfig
    from grouped_conv.kernels.depthwise_rules import DepthwiseConfig
    from grouped_conv.kernels.device import DeviceSpec
    from grouped_conv.kernels.epilogue import ACTIVATIONS, Epilogue
    from grouped_conv.kernels.layout import Group, GroupLayout
    from grouped_conv.kernels.lrn_pool_problem import LrnPoolProblem
    from grouped_conv.kernels.lrn_pool_rules import LrnPoolConfig
    from grouped_conv.kernels.packed_groups_rules import PackedGroupsConfig
    from grouped_conv.kernels.problem import ConvProblem
    from grouped_conv.kernels.ragged_rules import RaggedConfig
    from grouped_conv.kernels.separable_rules import SeparableConfig, SeparableProblem

ABI_VERSION = 4
"""Raised by hand whenever a kernel's results, arguments or speed change.

Recorded self-checks and timings of other versions are not trusted.
"""

_HOMES = {
    "ACTIVATIONS": "epilogue",
    "ConvProblem": "problem",
    "DepthwiseConfig": "depthwise_rules",
    "DeviceSpec": "device",
    "Epilogue": "epilogue",
    "Group": "layout",
    "GroupLayout": "layout",
    "ImplicitGemmConfig": "config",
    "KernelConfig": "config",
    "LrnPoolConfig": "lrn_pool_rules",
    "LrnPoolProblem": "lrn_pool_problem",
    "PackConfig": "config",
    "PackedGroupsConfig": "packed_groups_rules",
    "RaggedConfig": "ragged_rules",
    "ReduceConfig": "config",
    "SeparableConfig": "separable_rules",
    "SeparableProblem": "separable_rules",
}

__all__ = [
    "ABI_VERSION",
    "ACTIVATIONS",
    "ConvProblem",
    "DepthwiseConfig",
    "DeviceSpec",
    "Epilogue",
    "Group",
    "GroupLayout",
    "ImplicitGemmConfig",
    "KernelConfig",
    "LrnPoolConfig",
    "LrnPoolProblem",
    "PackConfig",
    "PackedGroupsConfig",
    "RaggedConfig",
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
