"""The kernel families, one row each: what the rest of the package must know to choose, check and plan a kernel.

A family's rules (configuration, validity, tile arithmetic) are in `<family>_rules.py`, its kernel and launch planner in
`<family>.py`. How fast it may be is the business of `autotune/families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grouped_conv.kernels import depthwise_rules, implicit_gemm_rules
from grouped_conv.kernels.config import ImplicitGemmConfig, KernelConfig, PackConfig, ReduceConfig
from grouped_conv.kernels.depthwise_rules import DepthwiseConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem

if TYPE_CHECKING:
    from grouped_conv.kernels.launch import Launch
    from grouped_conv.kernels.operands import Operand


def _krsc(problem: ConvProblem, config: Any) -> str:
    return "krsc"


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
        weight_order: (problem, config) to how the kernel reads the weight: `krsc`, `rsk` (one channel per group,
            output channels innermost), `taps` (one channel per group: [multiplier, R, S, C] in fp32), or `any`.
    """

    config: type[KernelConfig]
    why_invalid: Callable[[ConvProblem, Any], str | None]
    why_not_on: Callable[[ConvProblem, Any, DeviceSpec], str | None]
    plan: Callable[[ConvProblem, Any, Mapping[str, Operand]], Launch]
    one_warp: Callable[[ConvProblem], KernelConfig]
    weight_order: Callable[[ConvProblem, Any], str] = _krsc


def _plan_implicit_gemm(problem: ConvProblem, config: ImplicitGemmConfig, operands: Mapping[str, Operand]) -> Launch:
    from grouped_conv.kernels.implicit_gemm import plan_implicit_gemm

    return plan_implicit_gemm(problem, config, operands)


def _plan_depthwise(problem: ConvProblem, config: DepthwiseConfig, operands: Mapping[str, Operand]) -> Launch:
    from grouped_conv.kernels.depthwise import plan_depthwise

    return plan_depthwise(problem, config, operands)


FAMILIES: dict[str, Family] = {
    family.config.family: family
    for family in (
        Family(
            ImplicitGemmConfig,
            implicit_gemm_rules.why_invalid,
            implicit_gemm_rules.why_not_on,
            _plan_implicit_gemm,
            implicit_gemm_rules.one_warp,
        ),
        Family(
            DepthwiseConfig,
            depthwise_rules.why_invalid,
            depthwise_rules.why_not_on,
            _plan_depthwise,
            depthwise_rules.one_warp,
            depthwise_rules.weight_order,
        ),
    )
}
"""Families that compute a whole convolution, by name."""

CONFIGS: dict[str, type[KernelConfig]] = {
    **{name: family.config for name, family in FAMILIES.items()},
    PackConfig.family: PackConfig,
    ReduceConfig.family: ReduceConfig,
}
"""Every configuration that has a JSON form, those of the passes around a convolution included."""


def family_of(config: KernelConfig) -> Family:
    """The family whose configuration this is.

    Raises:
        ValueError: for the configuration of a pass that computes no convolution.
    """
    family = FAMILIES.get(config.family)
    if family is None:
        raise ValueError(f"{config} configures no convolution; families: {', '.join(FAMILIES)}")
    return family
