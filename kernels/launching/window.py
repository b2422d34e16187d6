"""The window of a convolution as a constant of its kernels."""

from __future__ import annotations

from grouped_conv.kernels.device_code.bundles import Window
from grouped_conv.kernels.values.problem import ConvProblem


def window_constant(problem: ConvProblem) -> Window:
    """The window in the image's rows and columns."""
    above, _, left, _ = problem.padding
    return Window(*problem.kernel_size, *problem.stride, above, left, *problem.dilation)
