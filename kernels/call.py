"""All launches of one convolution call, in order, with the temporary buffers between them.

| input         | weight | launches                               | output        | pack pass is redone         |
|---------------|--------|----------------------------------------|---------------|-----------------------------|
| channels_last | KRSC   | implicit_gemm                          | channels_last | never                       |
| channels_last | KCRS   | pack weight, implicit_gemm             | channels_last | every call (frozen: once)   |
| NCHW          | KRSC   | pack input, implicit_gemm              | channels_last | every call                  |
| NCHW          | KCRS   | pack input, pack weight, implicit_gemm | NCHW          | every call (weight: as above) |

A split reduction appends `split_reduce`. An input whose channels are innermost, at any other strides, is read in place.
A frozen module (a weight that needs no gradient) keeps its packed weight until the weight changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from grouped_conv.kernels.config import ImplicitGemmConfig
from grouped_conv.kernels.implicit_gemm import plan_implicit_gemm
from grouped_conv.kernels.launch import Launch
from grouped_conv.kernels.operands import Operand, Shape4, channels_last_strides, format_strides
from grouped_conv.kernels.pack import plan_pack
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.split_reduce import plan_split_reduce
from grouped_conv.kernels.validity import why_invalid


@dataclass(frozen=True, slots=True)
class Temporary:
    """A buffer the caller allocates for the length of the call: contiguous in this shape, 16-byte aligned."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """The launches of one call and the buffers they need."""

    problem: ConvProblem
    config: ImplicitGemmConfig
    launches: tuple[Launch, ...]
    temporaries: tuple[Temporary, ...]


def output_strides(problem: ConvProblem) -> Shape4:
    """Strides of the output, in elements: channels_last when the input or the weight is, as ATen does."""
    return format_strides(problem.output_shape, problem.output_channels_last)


def canonical_operands(problem: ConvProblem) -> dict[str, Operand]:
    """Dense, aligned operands in the problem's memory formats."""
    output = Operand(output_strides(problem))
    vector = Operand((1, 1, 1, 1))
    return {
        "input": Operand(format_strides(problem.input_shape, problem.input_channels_last)),
        "weight": Operand(format_strides(problem.weight_shape, problem.weight_channels_last)),
        "output": output,
        "residual": output,
        "preactivation": output,
        "bias": vector,
        "scale": vector,
    }


def plan_call(problem: ConvProblem, config: ImplicitGemmConfig, operands: Mapping[str, Operand] | None = None) -> Call:
    """The launches for `problem` with `config`.

    Args:
        operands: `input`, `weight`, `residual`, `output`, `preactivation`, `bias`, `scale` as they lie in memory;
            missing ones are dense, in the problem's memory format and 16-byte aligned.

    Raises:
        ValueError: when the configuration cannot run the problem, with the reason.
    """
    reason = why_invalid(problem, config)
    if reason is not None:
        raise ValueError(f"{config} cannot run {problem}: {reason}")
    given = {
        name: operand.named(name) for name, operand in (canonical_operands(problem) | dict(operands or {})).items()
    }
    launches: list[Launch] = []
    temporaries: list[Temporary] = []
    for name, shape in (("input", problem.input_shape), ("weight", problem.weight_shape)):
        if _channels_innermost(given[name], shape, dense=name == "weight"):
            continue
        target = f"packed_{name}"
        launches.append(plan_pack(given[name], target, shape, problem.dtype))
        temporaries.append(Temporary(target, (shape[0], shape[2], shape[3], shape[1]), problem.dtype))
        given[name] = Operand(channels_last_strides(shape), 16, target)
    launches.append(plan_implicit_gemm(problem, config, given))
    if config.split_k > 1:
        _, m, _, _ = problem.gemm
        temporaries.append(Temporary("workspace", (config.split_k, m, problem.out_channels), "float32"))
        launches.append(plan_split_reduce(problem, config.split_k, given))
    return Call(problem, config, tuple(launches), tuple(temporaries))


def _channels_innermost(operand: Operand, shape: Shape4, dense: bool) -> bool:
    """Can the kernel read this tensor in place? Strides of dimensions of size 1 say nothing."""
    wanted = channels_last_strides(shape)
    checked = range(4) if dense else (1,)
    return all(operand.strides[axis] == wanted[axis] or shape[axis] == 1 for axis in checked)
