"""Classes of an input's gradient: input rows with one remainder by the stride are reached by the same kernel rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def class_taps(
    residue,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,
    rows=None,
):
    """(first kernel row, number of rows, output row of the first less the class's row) of input rows of one class.

    `rows` is KERNEL as a run-time value, where the compiler must not unroll a loop over as many.
    """
    if STRIDE == 1:
        return 0, KERNEL, PAD
    else:
        if rows is None:
            rows = tl.full((), KERNEL, tl.int32)
        first = rows
        for back in tl.static_range(min(STEP, KERNEL)):
            row = min(STEP, KERNEL) - 1 - back
            hit = (residue + (PAD - DILATION * row)) % STRIDE == 0
            first = tl.where(hit, row, first)
        return first, (rows - first + STEP - 1) // STEP, (residue + PAD - DILATION * first) // STRIDE
