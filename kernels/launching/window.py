"""The window of a convolution as constants, by the names that every kernel gives them."""

from __future__ import annotations

from grouped_conv.kernels.values.problem import ConvProblem


def window_constants(problem: ConvProblem) -> dict[str, int]:
    """`KERNEL_*`, `STRIDE_*`, `PAD_*` (above and left) and `DILATION_*` for rows and columns."""
    above, _, left, _ = problem.padding
    pairs = {
        "KERNEL": problem.kernel_size,
        "STRIDE": problem.stride,
        "PAD": (above, left),
        "DILATION": problem.dilation,
    }
    return {f"{name}_{axis}": value for name, values in pairs.items() for axis, value in zip("HW", values, strict=True)}
