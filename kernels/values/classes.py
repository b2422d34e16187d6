"""The classes of input pixels that a strided input gradient computes one by one.

An input row `ih` is reached by kernel row `r` when `ih + pad - dilation * r` is a multiple of the stride. Rows with the
same remainder by the stride are reached by the same kernel rows: they are one class, and so are columns. A program
that computes pixels of one class multiplies by no zero that a stride inserted.
"""

from __future__ import annotations

import math

from grouped_conv.kernels.values.problem import ConvProblem, Pair


def class_step(stride: int, dilation: int) -> int:
    """From one kernel row of a class to the next."""
    return stride // math.gcd(stride, dilation)


def most_taps(problem: ConvProblem) -> Pair:
    """Kernel rows and columns of the largest class."""
    high, wide = (
        math.ceil(kernel / class_step(stride, dilation))
        for kernel, stride, dilation in zip(problem.kernel_size, problem.stride, problem.dilation, strict=True)
    )
    return high, wide


def class_size(problem: ConvProblem) -> Pair:
    """Rows and columns of the largest class of input pixels."""
    high, wide = (math.ceil(size / stride) for size, stride in zip(problem.in_size, problem.stride, strict=True))
    return high, wide
