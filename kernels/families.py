"""The kernel families, one row each: what the rest of the package must know to choose, check and plan a kernel.

A family computes one direction of one kind of problem. Its rules (configuration, validity, tile arithmetic) are in
`<direction>_rules.py` of its folder, its kernel and launch planner in `<direction>.py`. How fast it may be is described
in `autotune/model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from grouped_conv.kernels.depthwise import forward_rules as depthwise
from grouped_conv.kernels.depthwise import input_grad_rules as depthwise_input_grad
from grouped_conv.kernels.depthwise import weight_grad_rules as depthwise_weight_grad
from grouped_conv.kernels.implicit_gemm import forward_rules as implicit_gemm
from grouped_conv.kernels.implicit_gemm import input_grad_rules as input_grad
from grouped_conv.kernels.implicit_gemm import weight_grad_rules as weight_grad
from grouped_conv.kernels.lrn_pool import forward_rules as lrn_pool
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.packed import forward_rules as packed
from grouped_conv.kernels.packed import input_grad_rules as packed_input_grad
from grouped_conv.kernels.packed import weight_grad_rules as packed_weight_grad
from grouped_conv.kernels.passes import configs as _configs  # noqa: F401  loaded so that their tags are known
from grouped_conv.kernels.ragged import forward_rules as ragged
from grouped_conv.kernels.ragged import input_grad_rules as ragged_input_grad
from grouped_conv.kernels.ragged import weight_grad_rules as ragged_weight_grad
from grouped_conv.kernels.separable import forward_rules as separable
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.config import CONFIGS, KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

if TYPE_CHECKING:
    import numpy as np

    from grouped_conv.kernels.launching.launch import Launch

__all__ = [
    "CONFIGS",
    "FAMILIES",
    "Family",
    "KernelConfig",
    "Problem",
    "families_for",
    "family_of",
    "require_valid",
    "why_invalid",
]

Problem = ConvProblem | SeparableProblem | LrnPoolProblem
"""What the families compute."""


def _krsc(problem: Any, config: Any) -> str:
    return "krsc"


def _no_tables(problem: Any, config: Any) -> dict[str, np.ndarray]:
    return {}


def _sums(problem: Any, config: Any) -> tuple[int, ...]:
    return (config.splits, problem.out_channels, *problem.kernel_size, problem.c_per_group)


def _no_first_pass(problem: Any, config: Any, operands: Any) -> tuple[list[Launch], dict[str, int]]:
    return [], {}


def _no_second_pass(problem: Any, config: Any, operands: Any, grad_scale: bool) -> list[Launch]:
    return []


def _any_workspace(problem: Any, config: Any, part: int, max_bytes: int) -> tuple[Any, int]:
    return config, max_bytes


@dataclass(frozen=True, slots=True)
class Family:
    """One way to compute one direction of one kind of problem.

    Functions that load a kernel do so at their first call.

    Attributes:
        config: its configurations.
        why_invalid: (problem, config) to the reason why the configuration cannot run the problem anywhere, or None.
        why_not_on: (problem, config, device) to the reason why a valid configuration cannot run there, or None.
        plan: (problem, config, operands) to the kernel's launch. Activations have their channels innermost, the weight
            is stored as `weight_order` says.
        one_warp: problem to a small configuration of one warp, for places that compile for a CPU.
        problem: the class of its problems.
        ragged: whether it computes unequal, overlapping or listed groups; the others compute equal, consecutive ones.
        weight_order: (problem, config) to how the kernel reads the weight: `krsc`, `taps` (one channel per group:
            [multiplier, R, S, C] in fp32), or `any`. Weight gradients do not read one; unequal groups have their
            weights in one flat storage.
        tables: (problem, config) to the integer arrays that the kernel also reads, by buffer name; they depend on the
            layout, the kernel size and the configuration alone.
        first_pass: (problem, config, operands) to the launches before the kernel, and the int64 elements of each buffer
            that they fill for it.
        second_pass: (problem, config, operands, whether the scale's gradient is wanted) to the launches that turn the
            workspace into the result; a call without such launches has no workspace.
        workspace: (problem, config) to the shape of the fp32 values between the kernel and the second pass.
        fit_first_pass: (problem, config, bytes of one split in the workspace, bytes there are) to the configuration
            whose first pass fits, and the bytes that it leaves.
    """

    config: type[KernelConfig]
    why_invalid: Callable[[Any, Any], str | None]
    why_not_on: Callable[[Any, Any, DeviceSpec], str | None]
    plan: Callable[..., Launch]
    one_warp: Callable[[Any], KernelConfig]
    problem: type[Problem] = ConvProblem
    ragged: bool = False
    weight_order: Callable[[Any, Any], str] = _krsc
    tables: Callable[[Any, Any], dict[str, np.ndarray]] = _no_tables
    first_pass: Callable[..., tuple[list[Launch], dict[str, int]]] = _no_first_pass
    second_pass: Callable[..., list[Launch]] = _no_second_pass
    workspace: Callable[[Any, Any], tuple[int, ...]] = _sums
    fit_first_pass: Callable[[Any, Any, int, int], tuple[Any, int]] = _any_workspace

    @property
    def name(self) -> str:
        """The tag of its configurations."""
        return self.config.family

    @property
    def direction(self) -> str:
        """`forward`, `input_grad` or `weight_grad`."""
        return self.config.direction


def _later(rules: ModuleType, function: str) -> Callable[..., Any]:
    """A function of the module next to `rules` that holds the kernel, imported when it is called."""
    module = rules.__name__.removesuffix("_rules")

    def call(*arguments: Any) -> Any:
        return getattr(import_module(module), function)(*arguments)

    return call


def _family(config: type[KernelConfig], rules: ModuleType, plan: str, **more: Any) -> Family:
    return Family(config, rules.why_invalid, rules.why_not_on, _later(rules, plan), rules.one_warp, **more)


def _reduced(problem: ConvProblem, config: Any, operands: Any, grad_scale: bool) -> list[Launch]:
    from grouped_conv.kernels.passes.gradient_reduce import plan_gradient_reduce

    return [plan_gradient_reduce(problem, config.splits, operands, grad_scale)]


def _split_k_reduced(
    problem: ConvProblem, config: implicit_gemm.ImplicitGemmConfig, operands: Any, grad_scale: bool
) -> list[Launch]:
    from grouped_conv.kernels.passes.split_reduce import plan_split_reduce

    return [plan_split_reduce(problem, config.split_k, operands)] if config.split_k > 1 else []


_ROWS = (
    _family(
        implicit_gemm.ImplicitGemmConfig,
        implicit_gemm,
        "plan_implicit_gemm",
        second_pass=_split_k_reduced,
        workspace=implicit_gemm.workspace,
    ),
    _family(packed.PackedGroupsConfig, packed, "plan_packed_groups"),
    _family(depthwise.DepthwiseConfig, depthwise, "plan_depthwise", weight_order=depthwise.weight_order),
    _family(ragged.RaggedConfig, ragged, "plan_ragged", ragged=True, tables=ragged.tables),
    _family(separable.SeparableConfig, separable, "plan_separable", problem=SeparableProblem),
    _family(lrn_pool.LrnPoolConfig, lrn_pool, "plan_lrn_pool", problem=LrnPoolProblem),
    _family(input_grad.InputGradConfig, input_grad, "plan_input_grad"),
    _family(packed_input_grad.PackedInputGradConfig, packed_input_grad, "plan_packed_input_grad"),
    _family(
        depthwise_input_grad.DepthwiseInputGradConfig,
        depthwise_input_grad,
        "plan_depthwise_input_grad",
        weight_order=depthwise.weight_order,
    ),
    _family(
        ragged_input_grad.RaggedInputGradConfig,
        ragged_input_grad,
        "plan_ragged_input_grad",
        ragged=True,
        tables=ragged_input_grad.tables,
        second_pass=_later(ragged_input_grad, "plan_second_pass"),
        workspace=ragged_input_grad.workspace,
    ),
    _family(
        weight_grad.WeightGradConfig,
        weight_grad,
        "plan_weight_grad",
        first_pass=_later(weight_grad, "plan_first_pass"),
        second_pass=_reduced,
        fit_first_pass=weight_grad.fit_first_pass,
    ),
    _family(
        packed_weight_grad.PackedWeightGradConfig, packed_weight_grad, "plan_packed_weight_grad", second_pass=_reduced
    ),
    _family(
        depthwise_weight_grad.DepthwiseWeightGradConfig,
        depthwise_weight_grad,
        "plan_depthwise_weight_grad",
        second_pass=_reduced,
    ),
    _family(
        ragged_weight_grad.RaggedWeightGradConfig,
        ragged_weight_grad,
        "plan_ragged_weight_grad",
        ragged=True,
        tables=ragged_weight_grad.tables,
        second_pass=_later(ragged_weight_grad, "plan_second_pass"),
        workspace=ragged_weight_grad.workspace,
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.name: row for row in _ROWS})
"""Every family by its name, which is its kernel's name and the tag of its configurations."""


def family_of(config: KernelConfig) -> Family:
    """The family whose configuration this is.

    Raises:
        ValueError: for the configuration of a pass around a kernel.
    """
    family = FAMILIES.get(config.family)
    if family is None:
        raise ValueError(f"{config} configures no family of kernels; families: {', '.join(FAMILIES)}")
    return family


def families_for(problem: Problem) -> dict[str, Family]:
    """The families that compute this class of problems, its direction and its kind of groups, by name."""
    return {name: family for name, family in FAMILIES.items() if _computes(family, problem)}


def _computes(family: Family, problem: Problem) -> bool:
    if type(problem) is not family.problem or problem.direction != family.direction:
        return False
    return not isinstance(problem, ConvProblem) or problem.layout.is_uniform != family.ragged


def why_invalid(problem: Problem, config: KernelConfig, device: DeviceSpec | None = None) -> str | None:
    """`None` when `config` can run `problem` (on `device`, if given); otherwise one line that says why not.

    Raises:
        ValueError: for the configuration of a pass around a kernel.
    """
    family = family_of(config)
    if type(problem) is not family.problem:
        return f"{family.name} computes a {family.problem.__name__}, not a {type(problem).__name__}"
    return family.why_invalid(problem, config) or (
        None if device is None else family.why_not_on(problem, config, device)
    )


def require_valid(problem: Problem, config: KernelConfig) -> None:
    """Refuse a configuration that cannot run the problem.

    Raises:
        ValueError: with the reason.
    """
    reason = why_invalid(problem, config)
    if reason is not None:
        raise ValueError(f"{config} cannot run {problem}: {reason}")
