"""The kernel families that compute gradients, one row each, as `families.py` has them for the forward direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grouped_conv.kernels.depthwise import input_grad_rules as depthwise_input_grad_rules
from grouped_conv.kernels.depthwise import weight_grad_rules as depthwise_weight_grad_rules
from grouped_conv.kernels.implicit_gemm import input_grad_rules, weight_grad_rules
from grouped_conv.kernels.packed import input_grad_rules as packed_input_grad_rules
from grouped_conv.kernels.packed import weight_grad_rules as packed_weight_grad_rules
from grouped_conv.kernels.ragged import input_grad_rules as ragged_input_grad_rules
from grouped_conv.kernels.ragged import weight_grad_rules as ragged_weight_grad_rules
from grouped_conv.kernels.values.config import KernelConfig
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


def _splits(problem: ConvProblem, config: Any) -> int:
    return int(getattr(config, "splits", 1))


def _no_first_pass(
    problem: ConvProblem, config: Any, operands: Mapping[str, Operand]
) -> tuple[list[Launch], dict[str, int]]:
    return [], {}


def _pixel_table(
    problem: ConvProblem, config: Any, operands: Mapping[str, Operand]
) -> tuple[list[Launch], dict[str, int]]:
    from grouped_conv.kernels.implicit_gemm.weight_grad import plan_first_pass

    return plan_first_pass(problem, config, operands)


def _uniform_workspace(problem: ConvProblem, config: Any) -> tuple[int, ...]:
    return (_splits(problem, config), problem.out_channels, *problem.kernel_size, problem.c_per_group)


@dataclass(frozen=True, slots=True)
class GradientFamily:
    """One way to compute one gradient.

    Attributes:
        direction: `input_grad` or `weight_grad`.
        config: its configurations.
        why_invalid, why_not_on, plan, one_warp, weight_order, tables: as of `families.Family`; the weight's order is
            asked for by input gradients only.
        splits: (problem, configuration) to the parts into which a weight gradient divides the output pixels.
        workspace: (problem, configuration) to the shape of the fp32 values between the two passes.
        first_pass: (problem, configuration, operands) to the launches before the kernel of a weight gradient, and the
            int64 elements of each buffer that they fill for it.
        second_pass: (problem, configuration, operands, whether the scale's gradient is wanted) to the launches that
            turn the workspace into the gradient; an input gradient may need none and then has no workspace. None stands
            for `gradient_reduce` after a weight gradient and for nothing after an input gradient.
    """

    direction: str
    config: type[KernelConfig]
    why_invalid: Callable[[ConvProblem, Any], str | None]
    why_not_on: Callable[[ConvProblem, Any, DeviceSpec], str | None]
    plan: Callable[[ConvProblem, Any, Mapping[str, Operand]], Launch]
    one_warp: Callable[[ConvProblem], KernelConfig]
    weight_order: Callable[[ConvProblem, Any], str] = _krsc
    tables: Callable[[ConvProblem, Any], dict[str, np.ndarray]] = _no_tables
    splits: Callable[[ConvProblem, Any], int] = _splits
    workspace: Callable[[ConvProblem, Any], tuple[int, ...]] = _uniform_workspace
    first_pass: Callable[[ConvProblem, Any, Mapping[str, Operand]], tuple[list[Launch], dict[str, int]]] = (
        _no_first_pass
    )
    second_pass: Callable[[ConvProblem, Any, Mapping[str, Operand], bool], list[Launch]] | None = None


def _family(config: type[KernelConfig], rules: ModuleType, **more: Any) -> GradientFamily:
    """The row of a family whose rules are in `rules`, and whose planner is `plan_<family>` in the module `<family>`."""

    def plan(problem: ConvProblem, chosen: Any, operands: Mapping[str, Operand]) -> Launch:
        kernel = import_module(rules.__name__.removesuffix("_rules"))
        launch: Launch = getattr(kernel, f"plan_{config.family}")(problem, chosen, operands)
        return launch

    return GradientFamily(config.direction, config, rules.why_invalid, rules.why_not_on, plan, rules.one_warp, **more)


def _ragged(config: type[KernelConfig], rules: ModuleType) -> GradientFamily:
    """The row of a family for unequal groups: it has tables, a workspace and a second pass of its own."""

    def second_pass(
        problem: ConvProblem, chosen: Any, operands: Mapping[str, Operand], grad_scale: bool
    ) -> list[Launch]:
        kernel = import_module(rules.__name__.removesuffix("_rules"))
        launches: list[Launch] = kernel.plan_second_pass(problem, chosen, operands, grad_scale)
        return launches

    more = {"tables": rules.tables, "workspace": rules.workspace, "second_pass": second_pass}
    return _family(config, rules, **more)


GRADIENT_FAMILIES: dict[str, GradientFamily] = {
    family.config.family: family
    for family in (
        _family(input_grad_rules.InputGradConfig, input_grad_rules),
        _family(packed_input_grad_rules.PackedInputGradConfig, packed_input_grad_rules),
        _family(
            depthwise_input_grad_rules.DepthwiseInputGradConfig,
            depthwise_input_grad_rules,
            weight_order=depthwise_input_grad_rules.weight_order,
        ),
        _family(weight_grad_rules.WeightGradConfig, weight_grad_rules, first_pass=_pixel_table),
        _family(packed_weight_grad_rules.PackedWeightGradConfig, packed_weight_grad_rules),
        _family(depthwise_weight_grad_rules.DepthwiseWeightGradConfig, depthwise_weight_grad_rules),
        _ragged(ragged_input_grad_rules.RaggedInputGradConfig, ragged_input_grad_rules),
        _ragged(ragged_weight_grad_rules.RaggedWeightGradConfig, ragged_weight_grad_rules),
    )
}
"""By name."""


def gradient_family_of(config: KernelConfig) -> GradientFamily:
    """The family whose configuration this is.

    Raises:
        ValueError: for a configuration that computes no gradient.
    """
    family = GRADIENT_FAMILIES.get(config.family)
    if family is None:
        raise ValueError(f"{config} computes no gradient; families: {', '.join(GRADIENT_FAMILIES)}")
    return family
