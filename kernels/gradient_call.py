"""All launches that compute one gradient of a convolution, in order, with the temporary buffers between them.

| gradient | launches                                                                                       |
|----------|------------------------------------------------------------------------------------------------|
| input    | pack weight (a KCRS weight only), the family's kernel                                           |
| weight   | `pixel_table` (if configured), the family's kernel, which leaves a sum per split, `gradient_reduce` |
| input, groups that share channels | the family's kernel, which leaves a part per group, and `ragged_gather` |
| weight, unequal groups | the family's kernel and `ragged_weight_reduce`, for one flat buffer               |
| bias     | `channel_sums`, which may write the residual's gradient as well, and `gradient_reduce`          |

The residual's gradient is the output's gradient multiplied by the activation's derivative. If it is written first, the
other kernels read it as `grad_output` and solve `written_problem`.

The gradient of the scale comes out of `gradient_reduce` too: of `scale * conv(x, w)` it is `sum(w * d)` over each
output channel, where `d` is the weight's gradient before it is multiplied by the scale. So no launch computes the
convolution again. Each pass adds in a fixed order; no two programs write the same address.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from grouped_conv.kernels.families import KernelConfig, family_of, require_valid
from grouped_conv.kernels.launching.calls import Call, Temporary
from grouped_conv.kernels.launching.operands import Operand, channels_innermost, format_strides, named_operands
from grouped_conv.kernels.passes.channel_sums import plan_channel_sums, sum_splits
from grouped_conv.kernels.passes.packing import Packing
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

WORKSPACE = "workspace"
"""Partial sums in fp32: `[splits, K, R, S, C / groups]`, or one flat weight storage per split for unequal groups."""


def gradient_problem(problem: ConvProblem, direction: str) -> ConvProblem:
    """The gradient of a forward problem: of its epilogue remains what the gradient depends on."""
    epilogue = problem.epilogue
    kept = Epilogue(epilogue.activation, epilogue.negative_slope, scale=epilogue.scale, shuffle=epilogue.shuffle)
    return replace(problem, direction=direction, epilogue=kept)


def written_problem(problem: ConvProblem) -> ConvProblem:
    """The same gradient, read from what `plan_bias_gradient` stores: without the activation, in the filters' order."""
    return replace(problem, epilogue=Epilogue(scale=problem.epilogue.scale))


def canonical_gradient_operands(problem: ConvProblem) -> dict[str, Operand]:
    """Dense, aligned operands, activations with channels innermost, the weight in the problem's memory format."""
    output = Operand(format_strides(problem.output_shape, True))
    input = Operand(format_strides(problem.input_shape, True))
    weight = Operand((1, 1, 1, 1))
    if problem.layout.is_uniform:
        weight = Operand(format_strides(problem.weight_shape, problem.weight_channels_last))
    vector = Operand((1, 1, 1, 1))
    return {
        "grad_output": output,
        "known": output,
        "input": input,
        "weight": weight,
        "scale": vector,
        "grad_input": input,
        "grad_weight": weight,
        "grad_scale": vector,
    }


def plan_gradient(
    problem: ConvProblem,
    config: KernelConfig,
    operands: Mapping[str, Operand] | None = None,
    *,
    grad_scale: bool = False,
) -> Call:
    """The launches that compute `grad_input` or `grad_weight`, as the problem's direction says.

    Args:
        problem: from `gradient_problem`.
        operands: `grad_output`, `known` (what the activation's derivative needs), `input`, `weight`, `scale`,
            `grad_input`, `grad_weight`, `grad_scale` as they are in memory, those that are read with channels
            innermost; missing ones are dense and 16-byte aligned.
        grad_scale: also write `grad_scale`; with a scale and the direction `weight_grad` only.

    Raises:
        ValueError: when the configuration or the memory layout cannot be run, with the reason.
    """
    require_valid(problem, config)
    given = named_operands(canonical_gradient_operands(problem), operands)
    for name in ("grad_output", "known"):
        _require_channels_innermost(name, given[name], problem.output_shape)
    if problem.direction == "weight_grad":
        _require_channels_innermost("input", given["input"], problem.input_shape)
    return assembled(problem, config, Packing(problem.dtype, given), grad_scale)


def assembled(problem: ConvProblem, config: KernelConfig, packing: Packing, grad_scale: bool = False) -> Call:
    """The call of a configuration that can run the problem, after the pack passes that `packing` has already."""
    family, given = family_of(config), packing.operands
    if problem.layout.is_uniform and problem.direction != "weight_grad":
        packing.pack_weight(problem.weight_shape, family.weight_order(problem, config), problem.k_per_group)
    before, filled = family.first_pass(problem, config, given)
    kernel = family.plan(problem, config, given)
    second = family.second_pass(problem, config, given, grad_scale)
    temporaries = [*packing.temporaries]
    if second:
        temporaries.append(Temporary(WORKSPACE, family.workspace(problem, config), "float32"))
    temporaries += [Temporary(name, (size,), "int64") for name, size in filled.items()]
    launches = (*packing.launches, *before, kernel, *second)
    return Call(problem, config, launches, tuple(temporaries), family.tables(problem, config))


def capped(problem: ConvProblem, config: KernelConfig, max_workspace: int) -> KernelConfig:
    """The configuration with as many of its splits as `max_workspace` bytes hold, at least one.

    What a first pass fills counts among these bytes. Where they cannot hold that and one split, there is no first pass.
    """
    if problem.direction != "weight_grad":
        return config
    family = family_of(config)
    splits: int = config.splits  # type: ignore[attr-defined]
    part = 4 * math.prod(family.workspace(problem, config)) // splits
    config, room = family.fit_first_pass(problem, config, part, max_workspace)
    if splits == 1 or splits * part <= room:
        return config
    return replace(config, splits=max(1, room // part))  # type: ignore[call-arg]


def plan_bias_gradient(
    problem: ConvProblem,
    operands: Mapping[str, Operand] | None = None,
    *,
    grad_bias: bool = True,
    grad_residual: bool = False,
    sm_count: int = 108,
) -> Call:
    """The launches that sum `grad_output` times the activation's derivative per channel, and may store that product.

    The stored product is the residual's gradient, and what the other kernels may read instead: see `written_problem`.

    Args:
        operands: as of `plan_gradient`, with `grad_bias` and `grad_residual`.
        sm_count: multiprocessors that the launch should fill.
    """
    output = Operand(format_strides(problem.output_shape, True))
    canonical = canonical_gradient_operands(problem) | {"grad_bias": Operand((1, 1, 1, 1)), "grad_residual": output}
    given = named_operands(canonical, operands)
    for name in ("grad_output", "known"):
        _require_channels_innermost(name, given[name], problem.output_shape)
    launch = plan_channel_sums(problem, given, grad_bias, grad_residual, sm_count)
    if not grad_bias:
        return Call(problem, launch.config, (launch,), ())
    splits = launch.grid[0] // math.ceil(problem.out_channels / launch.constants["BLOCK_N"])
    workspace = Temporary(WORKSPACE, (splits, problem.out_channels), "float32")
    return Call(problem, launch.config, (launch, sum_splits(problem, splits, given["grad_bias"])), (workspace,))


def _require_channels_innermost(name: str, operand: Operand, shape: tuple[int, int, int, int]) -> None:
    if not channels_innermost(operand, shape):
        raise ValueError(f"{name} must have its channels innermost in memory, but its strides are {operand.strides}")
