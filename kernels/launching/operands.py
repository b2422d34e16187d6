"""How a call's tensors are stored in memory, and the kernel arguments that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from grouped_conv.kernels.device_code.bundles import Finish
from grouped_conv.kernels.launching.launch import Buffer, Integer
from grouped_conv.kernels.values.problem import ConvProblem

Shape4 = tuple[int, int, int, int]
FLOAT32_VECTOR = 4  # fp32 values in 16 bytes, the widest store


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of a call: strides in elements in (N, C, H, W) or (K, C, R, S) order, and its alignment.

    Attributes:
        strides: elements from one index to the next, per dimension.
        alignment: largest power of two up to 16 that divides the address, in bytes.
        buffer: name of the buffer; filled in by the call's planner.
    """

    strides: Shape4
    alignment: int = 16
    buffer: str = ""

    def named(self, buffer: str) -> Operand:
        """The same operand, in the buffer of that name."""
        return replace(self, buffer=buffer)


def contiguous_strides(shape: tuple[int, ...]) -> Shape4:
    """Strides of an NCHW-contiguous tensor of `shape`, as torch computes them."""
    _, c, h, w = (max(size, 1) for size in shape)
    return (c * h * w, h * w, w, 1)


def channels_last_strides(shape: tuple[int, ...]) -> Shape4:
    """Strides of a channels_last tensor of `shape`, as torch computes them."""
    _, c, h, w = (max(size, 1) for size in shape)
    return (h * w * c, 1, w * c, c)


def format_strides(shape: tuple[int, ...], channels_last: bool) -> Shape4:
    """Strides of a dense tensor in either memory format."""
    return channels_last_strides(shape) if channels_last else contiguous_strides(shape)


def output_strides(problem: ConvProblem) -> Shape4:
    """Strides of the output, in elements: channels_last when the input or the weight is, as ATen does."""
    return format_strides(problem.output_shape, problem.output_channels_last)


def channels_innermost(operand: Operand, shape: Shape4) -> bool:
    """Can a kernel read this activation, of `shape` (N, C, H, W), in place?"""
    return operand.strides[1] == 1 or shape[1] == 1


def is_krsc(weight: Operand, shape: Shape4) -> bool:
    """Is the weight, of `shape` (K, C / groups, R, S), stored as [K, R, S, C / groups]?

    Strides of dimensions of size 1 do not matter.
    """
    wanted = channels_last_strides(shape)
    return all(weight.strides[axis] == wanted[axis] or shape[axis] == 1 for axis in range(4))


def named_operands(canonical: Mapping[str, Operand], given: Mapping[str, Operand] | None) -> dict[str, Operand]:
    """The given operands, and canonical ones where none is given, each in the buffer of its name."""
    return {name: operand.named(name) for name, operand in {**canonical, **(given or {})}.items()}


@dataclass(frozen=True)
class Arguments:
    """Some of a launch's arguments."""

    buffers: tuple[Buffer, ...] = ()
    integers: tuple[Integer, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)


def stride_integers(letter: str, operand: Operand | None) -> Arguments:
    """`stride_{letter}n/c/h/w`; a channel stride of 1, and all strides of an absent tensor, are constants."""
    names = [f"stride_{letter}{axis}" for axis in "nchw"]
    if operand is None:
        return Arguments(constants=dict.fromkeys(names))
    values = dict(zip(names, operand.strides, strict=True))
    constants = {name: 1 for name in names if name.endswith("c") and values[name] == 1}
    integers = tuple(
        Integer.of(name, value, wide=True, stride=True) for name, value in values.items() if name not in constants
    )
    return Arguments(integers=integers, constants=constants)


def epilogue_arguments(problem: ConvProblem, operands: Mapping[str, Operand]) -> Arguments:
    """The epilogue's tensors and constants; without operands (a split's first pass) it does nothing."""
    epilogue = problem.epilogue
    present = {
        "scale_ptr": ("scale", epilogue.scale),
        "bias_ptr": ("bias", epilogue.bias),
        "residual_ptr": ("residual", epilogue.residual),
        "pre_ptr": ("preactivation", epilogue.save_preactivation),
        "y_ptr": ("output", True),
    }
    buffers = tuple(
        Buffer(parameter, name, problem.dtype, operands[name].alignment)
        for parameter, (name, wanted) in present.items()
        if operands and wanted
    )
    taken = {buffer.parameter for buffer in buffers}
    constants: dict[str, Any] = {parameter: None for parameter in present if parameter not in taken}
    constants["FINISH"] = Finish(
        epilogue.activation if operands else "none",
        epilogue.negative_slope,
        store_vector(problem, operands["output"]) if operands else FLOAT32_VECTOR,
        epilogue.shuffle,
        problem.out_channels if epilogue.shuffle > 1 else 1,  # a constant only where there is a shuffle to divide
    )
    return Arguments(buffers, (), constants)


def input_shuffle_constants(problem: ConvProblem) -> dict[str, int]:
    """The channel shuffle of the input; the channel count is a constant only where there is a shuffle to divide."""
    shuffle = problem.input_shuffle
    return {"INPUT_SHUFFLE": shuffle, "IN_CHANNELS": problem.in_channels if shuffle > 1 else 1}


def is_dense(problem: ConvProblem, operand: Operand) -> bool:
    """Do the pixels of an operand of the output's shape follow each other in memory, channels innermost?"""
    wanted = channels_last_strides(problem.output_shape)
    return (
        all(
            have == want or size == 1
            for have, want, size in zip(operand.strides, wanted, problem.output_shape, strict=True)
        )
        and operand.strides[3] == wanted[3]
    )


def store_vector(problem: ConvProblem, output: Operand) -> int:
    """Channels that one 16-byte store holds; 1 when channels are not innermost."""
    return 16 // problem.item_size if output.strides[1] == 1 else 1
