"""All launches of one convolution call, in order, with the temporary buffers between them.

| input         | weight | launches                             | output        | pack pass is redone           |
|---------------|--------|--------------------------------------|---------------|-------------------------------|
| channels_last | KRSC   | the family's kernel                  | channels_last | never                         |
| channels_last | KCRS   | pack weight, the kernel              | channels_last | every call (frozen: once)     |
| NCHW          | KRSC   | pack input, the kernel               | channels_last | every call                    |
| NCHW          | KCRS   | pack input, pack weight, the kernel  | NCHW          | every call (weight: as above) |

A split reduction of the implicit GEMM appends `split_reduce`. An input whose channels are innermost, at any other
strides, is read in place.
A frozen module (a weight that needs no gradient) keeps its packed weight until the weight changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from grouped_conv.kernels.config import ImplicitGemmConfig, KernelConfig
from grouped_conv.kernels.families import family_of
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
    config: KernelConfig
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
    packing = _Packing(problem.dtype, given)
    if not _channels_innermost(given["input"], problem.input_shape):
        packing.pack("input", problem.input_shape)
    family = family_of(config)
    shape, order = problem.weight_shape, family.weight_order(problem, config)
    if order == "krsc" and not _is_krsc(given["weight"], shape):
        packing.pack("weight", shape)
    if order == "rsk" and not _is_rsk(given["weight"], shape):
        packing.pack_rsk(shape)
    if order == "taps":
        packing.pack_taps(shape, problem.k_per_group)
    launches, temporaries = packing.launches, packing.temporaries
    launches.append(family.plan(problem, config, given))
    if isinstance(config, ImplicitGemmConfig) and config.split_k > 1:
        _, m, _, _ = problem.gemm
        temporaries.append(Temporary("workspace", (config.split_k, m, problem.out_channels), "float32"))
        launches.append(plan_split_reduce(problem, config.split_k, given))
    return Call(problem, config, tuple(launches), tuple(temporaries))


class _Packing:
    """The pack passes before the kernel; each puts its buffer in the place of the operand it replaces."""

    def __init__(self, dtype: str, operands: dict[str, Operand]) -> None:
        self.dtype, self.operands = dtype, operands
        self.launches: list[Launch] = []
        self.temporaries: list[Temporary] = []

    def pack(self, name: str, shape: Shape4) -> None:
        """Move the channels of operand `name`, of `shape` (N, C, H, W), innermost."""
        self._add(name, self.operands[name], shape, channels_last_strides(shape))

    def pack_rsk(self, shape: Shape4) -> None:
        """Move the output channels of a weight (K, 1, R, S) innermost: [R, S, K] in memory."""
        out_channels, _, kernel_h, kernel_w = shape
        stride_k, _, stride_r, stride_s = self.operands["weight"].strides
        as_image = replace(self.operands["weight"], strides=(0, stride_k, stride_r, stride_s))
        self._add("weight", as_image, (1, out_channels, kernel_h, kernel_w), rsk_strides(shape))

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


def rsk_strides(shape: Shape4) -> Shape4:
    """Strides of a weight (K, 1, R, S) that lies as [R, S, K]."""
    out_channels, _, _, kernel_w = shape
    return (1, 1, kernel_w * out_channels, out_channels)


def _channels_innermost(operand: Operand, shape: Shape4) -> bool:
    """Can a kernel read this input in place?"""
    return operand.strides[1] == 1 or shape[1] == 1


def _is_krsc(weight: Operand, shape: Shape4) -> bool:
    """Does the weight lie as [K, R, S, C / groups]? Strides of dimensions of size 1 say nothing."""
    return _lies_as(weight, shape, channels_last_strides(shape))


def _is_rsk(weight: Operand, shape: Shape4) -> bool:
    return _lies_as(weight, shape, rsk_strides(shape))


def _lies_as(operand: Operand, shape: Shape4, wanted: Shape4) -> bool:
    return all(operand.strides[axis] == wanted[axis] or shape[axis] == 1 for axis in range(4))
