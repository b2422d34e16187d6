"""The window of a convolution as its kernels see it: a constant, how taps are masked, how far it reaches."""

from __future__ import annotations

from grouped_conv.kernels.device_code.bundles import Window
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.values.problem import ConvProblem


def window_constant(problem: ConvProblem) -> Window:
    """The window in the image's rows and columns."""
    above, _, left, _ = problem.padding
    return Window(*problem.kernel_size, *problem.stride, above, left, *problem.dilation)


def tap_mode(problem: ConvProblem) -> str:
    """How a row remembers which taps are inside: one bit per tap, row and column bits, or comparisons in the loop."""
    if problem.taps <= 31:
        return "word"
    return "row_column" if max(problem.kernel_size) <= 15 else "direct"


def window_extent(problem: ConvProblem, x: Operand) -> int:
    """Elements between the first and the last value one output pixel reads; what the loop's offsets must hold."""
    reach = [d * (k - 1) for d, k in zip(problem.dilation, problem.kernel_size, strict=True)]
    return (
        (reach[0] + problem.dilation[0]) * x.strides[2]
        + (reach[1] + problem.dilation[1]) * x.strides[3]
        + problem.in_channels
    )
