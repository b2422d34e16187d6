"""The operands that gradients start from: the output's gradient, and what the activation's derivative is read from."""

from __future__ import annotations

from collections.abc import Mapping

from grouped_conv.kernels.device_code.bundles import Derivative
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer
from grouped_conv.kernels.launching.operands import Arguments, Operand
from grouped_conv.kernels.values.epilogue import FROM_OUTPUT, Epilogue
from grouped_conv.kernels.values.problem import ConvProblem


def reads_preactivation(epilogue: Epilogue) -> bool:
    """Does the activation's derivative need its argument? Otherwise its output will do, or nothing."""
    falling = epilogue.activation == "leaky_relu" and epilogue.negative_slope < 0
    return falling or epilogue.activation not in FROM_OUTPUT


def is_wide(problem: ConvProblem, operands: Mapping[str, Operand]) -> bool:
    """Does some tensor that a weight gradient reads, a window's padding around it included, pass 32-bit offsets?"""
    reach = [d * k for d, k in zip(problem.dilation, problem.kernel_size, strict=True)]
    shapes = {"grad_output": problem.output_shape, "known": problem.output_shape, "input": problem.input_shape}
    for name, (batch, channels, height, width) in shapes.items():
        n, _, h, w = operands[name].strides
        rows, columns = height + 2 * reach[0] + problem.stride[0], width + 2 * reach[1] + problem.stride[1]
        if (batch + 1) * n + rows * h + columns * w + channels > INT32_MAX:
            return True
    return False


def gradient_arguments(problem: ConvProblem, operands: Mapping[str, Operand], *, wide: bool | None = None) -> Arguments:
    """What every kernel that loads the output's gradient takes: its pointers, strides, and the activation's constants.

    Args:
        wide: whether strides are 64-bit; by default that of images is, the others where a window needs it.

    The gradient is in the output's channel order, and so is an output that the derivative is read from.
    """
    epilogue = problem.epilogue
    from_output = not reads_preactivation(epilogue)
    present = {"dy_ptr": operands["grad_output"]}
    if epilogue.activation != "none":
        present["known_ptr"] = operands["known"]
    known = operands["known"] if epilogue.activation != "none" else operands["grad_output"]
    rows, columns = (d * k for d, k in zip(problem.dilation, problem.kernel_size, strict=True))

    def window_is_wide(operand: Operand) -> bool:
        return rows * operand.strides[2] + columns * operand.strides[3] > INT32_MAX // 2

    integers = tuple(
        Integer.of(
            f"stride_{letter}{axis}",
            operand.strides[index],
            wide=(axis == "n" or window_is_wide(operand)) if wide is None else wide,
            stride=True,
        )
        for letter, operand in (("g", operands["grad_output"]), ("k", known))
        for index, axis in ((0, "n"), (2, "h"), (3, "w"))
    )
    constants = {
        "DERIVATIVE": Derivative(
            epilogue.activation,
            epilogue.negative_slope,
            epilogue.shuffle,
            epilogue.shuffle if from_output else 1,
            problem.out_channels if epilogue.shuffle > 1 else 1,
        ),
        **({} if "known_ptr" in present else {"known_ptr": None}),
    }
    buffers = tuple(
        Buffer(parameter, operand.buffer, problem.dtype, operand.alignment) for parameter, operand in present.items()
    )
    return Arguments(buffers, integers, constants)
