"""All launches of one convolution call, in order, with the temporary buffers between them.

| input         | weight | launches                             | output        | pack pass is redone           |
|---------------|--------|--------------------------------------|---------------|-------------------------------|
| channels_last | KRSC   | the family's kernel                  | channels_last | never                         |
| channels_last | KCRS   | pack weight, the kernel              | channels_last | every call (frozen: once)     |
| NCHW          | KRSC   | pack input, the kernel               | channels_last | every call                    |
| NCHW          | KCRS   | pack input, pack weight, the kernel  | NCHW          | every call (weight: as above) |

A split reduction of the implicit GEMM appends `split_reduce`. An input whose channels are innermost, at any other
strides, is read in place. The weights of unequal groups are one flat storage (`ragged.forward_rules.weight_offsets`),
which the caller provides.
A frozen module (a weight that needs no gradient) keeps its packed weight until the weight changes.
"""

from __future__ import annotations

from collections.abc import Mapping

from grouped_conv.kernels.families import KernelConfig, require_valid
from grouped_conv.kernels.gradient_call import assembled, plan_gradient
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.launching.operands import (
    Operand,
    channels_innermost,
    format_strides,
    named_operands,
    output_strides,
)
from grouped_conv.kernels.passes.packing import Packing
from grouped_conv.kernels.values.problem import ConvProblem


def plan(
    problem: ConvProblem,
    config: KernelConfig,
    operands: Mapping[str, Operand] | None = None,
    *,
    grad_scale: bool = False,
) -> Call:
    """The launches of the problem in its direction; the arguments are those of `plan_call` and `plan_gradient`.

    Raises:
        ValueError: when the configuration cannot run the problem, with the reason.
    """
    if problem.direction == "forward":
        return plan_call(problem, config, operands)
    return plan_gradient(problem, config, operands, grad_scale=grad_scale)


def canonical_operands(problem: ConvProblem) -> dict[str, Operand]:
    """Dense, aligned operands in the problem's memory formats."""
    output = Operand(output_strides(problem))
    vector = Operand((1, 1, 1, 1))
    weight = vector
    if problem.layout.is_uniform:
        weight = Operand(format_strides(problem.weight_shape, problem.weight_channels_last))
    return {
        "input": Operand(format_strides(problem.input_shape, problem.input_channels_last)),
        "weight": weight,
        "output": output,
        "residual": output,
        "preactivation": output,
        "bias": vector,
        "scale": vector,
    }


def plan_call(problem: ConvProblem, config: KernelConfig, operands: Mapping[str, Operand] | None = None) -> Call:
    """The launches for a forward `problem` with `config`.

    Args:
        operands: `input`, `weight`, `residual`, `output`, `preactivation`, `bias`, `scale` as they are in memory;
            missing ones are dense, in the problem's memory format and 16-byte aligned.

    Raises:
        ValueError: when the configuration cannot run the problem, with the reason.
    """
    require_valid(problem, config)
    packing = Packing(problem.dtype, named_operands(canonical_operands(problem), operands))
    if not channels_innermost(packing.operands["input"], problem.input_shape):
        packing.pack("input", problem.input_shape)
    return assembled(problem, config, packing)
