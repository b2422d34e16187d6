"""All launches of one convolution call, in order, with the temporary buffers between them.

| input         | weight | launches                             | output        | pack pass is redone           |
|---------------|--------|--------------------------------------|---------------|-------------------------------|
| channels_last | KRSC   | the family's kernel                  | channels_last | never                         |
| channels_last | KCRS   | pack weight, the kernel              | channels_last | every call (frozen: once)     |
| NCHW          | KRSC   | pack input, the kernel               | channels_last | every call                    |
| NCHW          | KCRS   | pack input, pack weight, the kernel  | NCHW          | every call (weight: as above) |

A split reduction of the implicit GEMM appends `split_reduce`. An input whose channels are innermost, at any other
strides, is read in place. The weights of unequal groups lie in one flat storage (`ragged_rules.weight_offsets`), which
the caller provides.
A frozen module (a weight that needs no gradient) keeps its packed weight until the weight changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand, Shape4, channels_last_strides, format_strides
from grouped_conv.kernels.passes.pack import plan_pack
from grouped_conv.kernels.passes.split_reduce import plan_split_reduce
from grouped_conv.kernels.validity import why_invalid
from grouped_conv.kernels.values.config import ImplicitGemmConfig, KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class Temporary:
    """A buffer the caller allocates for the length of the call: contiguous in this shape, 16-byte aligned."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """The launches of one call and the buffers they need.

    Attributes:
        tables: integer arrays that the launches read, by buffer name; the same at every call.
    """

    problem: ConvProblem
    config: KernelConfig
    launches: tuple[Launch, ...]
    temporaries: tuple[Temporary, ...]
    tables: Mapping[str, np.ndarray] = field(default_factory=dict, hash=False, compare=False)


def output_strides(problem: ConvProblem) -> Shape4:
    """Strides of the output, in elements: channels_last when the input or the weight is, as ATen does."""
    return format_strides(problem.output_shape, problem.output_channels_last)


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
    packing = Packing(problem.dtype, given)
    if not channels_innermost(given["input"], problem.input_shape):
        packing.pack("input", problem.input_shape)
    family = family_of(config)
    if problem.layout.is_uniform:
        packing.pack_weight(problem.weight_shape, family.weight_order(problem, config), problem.k_per_group)
    launches, temporaries = packing.launches, packing.temporaries
    launches.append(family.plan(problem, config, given))
    if isinstance(config, ImplicitGemmConfig) and config.split_k > 1:
        _, m, _, _ = problem.gemm
        temporaries.append(Temporary("workspace", (config.split_k, m, problem.out_channels), "float32"))
        launches.append(plan_split_reduce(problem, config.split_k, given))
    return Call(problem, config, tuple(launches), tuple(temporaries), family.tables(problem, config))


class Packing:
    """The pack passes before the kernel; each puts its buffer in the place of the operand it replaces."""

    def __init__(self, dtype: str, operands: dict[str, Operand]) -> None:
        self.dtype, self.operands = dtype, operands
        self.launches: list[Launch] = []
        self.temporaries: list[Temporary] = []

    def pack(self, name: str, shape: Shape4) -> None:
        """Move the channels of operand `name`, of `shape` (N, C, H, W), innermost."""
        self._add(name, self.operands[name], shape, channels_last_strides(shape))

    def pack_weight(self, shape: Shape4, order: str, k_per_group: int) -> None:
        """Bring the weight, of `shape` (K, C / groups, R, S), into the order that the kernel reads."""
        if order == "krsc" and not is_krsc(self.operands["weight"], shape):
            self.pack("weight", shape)
        if order == "taps":
            self.pack_taps(shape, k_per_group)

    def pack_taps(self, shape: Shape4, multiplier: int) -> None:
        """Bring a weight (C * multiplier, 1, R, S) to [multiplier, R, S, C] in fp32."""
        out_channels, _, kernel_h, kernel_w = shape
        stride_k, _, stride_r, stride_s = self.operands["weight"].strides
        as_images = replace(self.operands["weight"], strides=(stride_k, multiplier * stride_k, stride_r, stride_s))
        images = (multiplier, out_channels // multiplier, kernel_h, kernel_w)
        self._add("weight", as_images, images, channels_last_strides(images), "float32")

    def _add(self, name: str, source: Operand, shape: Shape4, strides: Shape4, dtype: str = "") -> None:
        target = f"packed_{name}"
        self.launches.append(plan_pack(source, target, shape, self.dtype, dtype))
        self.temporaries.append(Temporary(target, (shape[0], shape[2], shape[3], shape[1]), dtype or self.dtype))
        self.operands[name] = Operand(strides, 16, target)


def channels_innermost(operand: Operand, shape: Shape4) -> bool:
    """Can a kernel read this input in place?"""
    return operand.strides[1] == 1 or shape[1] == 1


def is_krsc(weight: Operand, shape: Shape4) -> bool:
    """Does the weight lie as [K, R, S, C / groups]? Strides of dimensions of size 1 say nothing."""
    return _lies_as(weight, shape, channels_last_strides(shape))


def _lies_as(operand: Operand, shape: Shape4, wanted: Shape4) -> bool:
    return all(operand.strides[axis] == wanted[axis] or shape[axis] == 1 for axis in range(4))
