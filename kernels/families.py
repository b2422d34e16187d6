"""The kernel families, one row each: what the rest of the package must know to choose, check and plan a kernel.

A family's rules (configuration, validity, tile arithmetic) are in `<family>_rules.py`, its kernel and launch planner in
`<family>.py`. How fast it may be is the business of `autotune/families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grouped_conv.kernels.depthwise import forward_rules as depthwise_rules
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.implicit_gemm import forward_rules as implicit_gemm_rules
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
from grouped_conv.kernels.packed import forward_rules as packed_groups_rules
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed.weight_grad_rules import PackedWeightGradConfig
from grouped_conv.kernels.ragged import forward_rules as ragged_rules
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.separable.forward_rules import SeparableConfig
from grouped_conv.kernels.values.config import ImplicitGemmConfig, KernelConfig, PackConfig, ReduceConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

if TYPE_CHECKING:
    import numpy as np

    from grouped_conv.kernels.launching.launch import Launch
    from grouped_conv.kernels.launching.operands import Operand


def _krsc(problem: ConvProblem, config: Any) -> str:
    return "krsc"


def _no_tables(problem: ConvProblem, config: Any) -> dict[str, np.ndarray]:
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """One way to compute a convolution.

    Attributes:
        config: its configurations.
        why_invalid: (problem, config) to the reason why the configuration cannot run the problem anywhere, or None.
        why_not_on: (problem, config, device) to the reason why a valid configuration cannot run there, or None.
        plan: (problem, config, operands) to the main launch; the input has its channels innermost, the weight lies as
            `weight_order` asks. The kernel is loaded at the first call.
        one_warp: problem to a small configuration of one warp, for places that compile for a CPU.
        weight_order: (problem, config) to how the kernel reads the weight: `krsc`, `taps` (one channel per group:
            [multiplier, R, S, C] in fp32), or `any`. Unequal groups have their weights in one flat storage instead.
        tables: (problem, config) to the integer arrays that the kernel reads besides the operands, by buffer name; they
            depend on the layout, the kernel size and the configuration alone.
    """

    config: type[KernelConfig]
    why_invalid: Callable[[ConvProblem, Any], str | None]
    why_not_on: Callable[[ConvProblem, Any, DeviceSpec], str | None]
    plan: Callable[[ConvProblem, Any, Mapping[str, Operand]], Launch]
    one_warp: Callable[[ConvProblem], KernelConfig]
    weight_order: Callable[[ConvProblem, Any], str] = _krsc
    tables: Callable[[ConvProblem, Any], dict[str, np.ndarray]] = _no_tables


def _family(config: type[KernelConfig], rules: ModuleType, **more: Any) -> Family:
    """The row of a family whose rules are in `rules`, and whose planner is `plan_<family>` in the module `<family>`."""

    def plan(problem: ConvProblem, chosen: Any, operands: Mapping[str, Operand]) -> Launch:
        kernel = import_module(rules.__name__.removesuffix("_rules"))
        launch: Launch = getattr(kernel, f"plan_{config.family}")(problem, chosen, operands)
        return launch

    return Family(config, rules.why_invalid, rules.why_not_on, plan, rules.one_warp, **more)


FAMILIES: dict[str, Family] = {
    family.config.family: family
    for family in (
        _family(ImplicitGemmConfig, implicit_gemm_rules),
        _family(PackedGroupsConfig, packed_groups_rules),
        _family(DepthwiseConfig, depthwise_rules, weight_order=depthwise_rules.weight_order),
        _family(RaggedConfig, ragged_rules, tables=ragged_rules.tables),
    )
}
"""Families that compute a whole convolution, by name."""

CONFIGS: dict[str, type[KernelConfig]] = {
    **{name: family.config for name, family in FAMILIES.items()},
    PackConfig.family: PackConfig,
    ReduceConfig.family: ReduceConfig,
    SeparableConfig.family: SeparableConfig,
    LrnPoolConfig.family: LrnPoolConfig,
    InputGradConfig.family: InputGradConfig,
    WeightGradConfig.family: WeightGradConfig,
    PackedInputGradConfig.family: PackedInputGradConfig,
    PackedWeightGradConfig.family: PackedWeightGradConfig,
    DepthwiseInputGradConfig.family: DepthwiseInputGradConfig,
    DepthwiseWeightGradConfig.family: DepthwiseWeightGradConfig,
    RaggedInputGradConfig.family: RaggedInputGradConfig,
    RaggedWeightGradConfig.family: RaggedWeightGradConfig,
}
"""Every configuration that has a JSON form, those of passes around a convolution and of other kernels
included."""


def family_of(config: KernelConfig) -> Family:
    """The family whose configuration this is.

    Raises:
        ValueError: for the configuration of a pass that computes no convolution.
    """
    family = FAMILIES.get(config.family)
    if family is None:
        raise ValueError(f"{config} configures no convolution; families: {', '.join(FAMILIES)}")
    return family
