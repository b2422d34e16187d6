"""How far a right result may be from float64: a bound from the number format and the length of the reduction."""

from __future__ import annotations

import math

from grouped_conv.kernels.values.problem import ConvProblem

ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "tf32": 2.0**-11, "ieee": 2.0**-24}
"""Largest relative error of rounding one number to the format of the products or the output."""
ROUNDINGS = 4.0
SUMS = 2.0
"""A result of length-K sums in fp32 may be off by `ROUNDINGS` units of its format (operands, activation, output) and by
`SUMS * 2**-24 * sqrt(K)` of the largest value: rounding errors of a sum add like a random walk (Higham, Accuracy and
Stability of Numerical Algorithms, 4.2). At AlexNet's conv2 (K = 1200) that allows 4.4e-6 for fp32, where compiled
kernels differ from float64 by 1.3e-6 and a kernel that skips one of 25 taps by more than 1e-1."""


def allowed_error(problem: ConvProblem) -> float:
    """The largest `max|y - exact| / max|exact|` that counts as right."""
    kind = problem.dtype if problem.dtype != "float32" else problem.precision
    return ROUNDINGS * ROUNDOFF[kind] + SUMS * ROUNDOFF["ieee"] * math.sqrt(reduction_length(problem))


def reduction_length(problem: ConvProblem) -> int:
    """Products that the largest of the problem's sums adds."""
    if problem.direction == "weight_grad":
        return max(1, problem.batch * math.prod(problem.output_shape[2:]))
    groups = range(problem.groups)
    if problem.layout.is_uniform:
        channels = problem.c_per_group if problem.direction == "forward" else problem.k_per_group
    else:
        channels = max(len(problem.layout.inputs_of(group)) for group in groups)
        if problem.direction == "input_grad":
            channels = problem.out_channels
    return max(1, problem.taps * channels)
