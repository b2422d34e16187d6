"""The leaf of the package: frozen values, the Triton kernels, one launch planner each.

Nothing here imports torch.nn, registers an op, touches a GPU or reads the environment, so that compile
workers start fast. Names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig
    from grouped_conv.kernels.families import KernelConfig
    from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
    from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
    from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
    from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig
    from grouped_conv.kernels.passes.configs import PackConfig, ReduceConfig
    from grouped_conv.kernels.ragged.forward_rules import RaggedConfig
    from grouped_conv.kernels.separable.forward_rules import SeparableConfig
    from grouped_conv.kernels.separable.problem import SeparableProblem
    from grouped_conv.kernels.values.device import DeviceSpec
    from grouped_conv.kernels.values.epilogue import ACTIVATIONS, Epilogue
    from grouped_conv.kernels.values.layout import Group, GroupLayout
    from grouped_conv.kernels.values.problem import ConvProblem

ABI_VERSION = 4
"""Raised by hand whenever a kernel's results, arguments or speed change.

Recorded self-checks and timings of other versions are not trusted.
"""

_HOMES = {
    "ACTIVATIONS": "values.epilogue",
    "ConvProblem": "values.problem",
    "DepthwiseConfig": "depthwise.forward_rules",
    "DeviceSpec": "values.device",
    "Epilogue": "values.epilogue",
    "Group": "values.layout",
    "GroupLayout": "values.layout",
    "ImplicitGemmConfig": "implicit_gemm.forward_rules",
    "KernelConfig": "families",
    "LrnPoolConfig": "lrn_pool.forward_rules",
    "LrnPoolProblem": "lrn_pool.problem",
    "PackConfig": "passes.configs",
    "PackedGroupsConfig": "packed.forward_rules",
    "RaggedConfig": "ragged.forward_rules",
    "ReduceConfig": "passes.configs",
    "SeparableConfig": "separable.forward_rules",
    "SeparableProblem": "separable.problem",
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
