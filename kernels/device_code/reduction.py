"""The reductions of the implicit GEMM: products over kernel taps and input channels into one accumulator.

`flat_reduction` walks (kernel row, kernel column, channel) as one index and takes any number of channels.
`tap_reduction` walks whole channel blocks of one tap with carried counters, in either loop order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.index import shuffled, tap_mask


@triton.constexpr_function
def taps_fit(depth, c_per_group, kernel_w, tap_mode):
    """Do all taps of a reduction of `depth` have a bit of their own in the row's word?"""
    last_tap = (depth - 1) // c_per_group
    if tap_mode == "word":
        return last_tap <= 31
    return tap_mode == "row_column" and last_tap // kernel_w <= 15


@triton.jit
def flat_reduction(
    acc,
    x_rows,
    w_cols,
    col_ok,
    reach,
    stride_xh,
    stride_xw,
    split,
    trips,
    total_trips,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    TAPS: tl.constexpr,
    CACHE_A: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    group=0,
    INPUT_SHUFFLE: tl.constexpr = 1,
    IN_CHANNELS: tl.constexpr = 1,
):
    """Acc + x[rows, k] * w[k, cols] over this split's `trips` blocks of the flat index k.

    Without a shuffle of the input `x_rows` begins at the group's first channel, with one at the image's.
    """
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * C_PER_GROUP
    BLOCKS: tl.constexpr = (DEPTH + BLOCK_K - 1) // BLOCK_K
    # Taps past the last have bits of zero. Past the end of the word they need a mask; in the blocks that the pipeline
    # prepares beyond the loop's end they need only be legal shifts: the compiler may take those as it likes otherwise.
    MASK_K: tl.constexpr = not taps_fit(BLOCKS * BLOCK_K, C_PER_GROUP, KERNEL_W, TAPS.MODE)
    CLAMP: tl.constexpr = not taps_fit((BLOCKS + NUM_STAGES - 1) * BLOCK_K, C_PER_GROUP, KERNEL_W, TAPS.MODE)
    offs_k = tl.arange(0, BLOCK_K)
    begin = split * trips * BLOCK_K
    for k0 in tl.range(
        begin, tl.minimum(begin + trips * BLOCK_K, total_trips * BLOCK_K), BLOCK_K, num_stages=NUM_STAGES
    ):
        k = k0 + offs_k
        tap = k // C_PER_GROUP
        kernel_h = tap // KERNEL_W
        kernel_w = tap % KERNEL_W
        offset = kernel_h * (DILATION_H * stride_xh) + kernel_w * (DILATION_W * stride_xw)
        if INPUT_SHUFFLE == 1:
            offset += k % C_PER_GROUP
        else:  # a shuffle in C / s groups undoes one in s
            channel = group * C_PER_GROUP + k % C_PER_GROUP
            offset += shuffled(channel, IN_CHANNELS // INPUT_SHUFFLE, IN_CHANNELS)
        if CLAMP and TAPS.MODE != "direct":
            tap = tap & 31
            kernel_h = kernel_h & 15
        mask = tap_mask(reach, tap[None, :], kernel_h[None, :], kernel_w[None, :], TAPS)
        if MASK_K:
            mask = mask & (k < DEPTH)[None, :]
        a = tl.load(
            x_rows[:, None] + offset[None, :], mask=mask, other=0.0, cache_modifier=CACHE_A
        )  # [BLOCK_M, BLOCK_K]
        b = load_weight(w_cols[None, :] + k[:, None], col_ok, k < DEPTH, EVEN_N, DEPTH % BLOCK_K == 0)
        acc = multiply_add(a, b, acc, PRECISION)
    return acc


@triton.jit
def multiply_add(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b; exact fp32 products are summed block by block: the error of two short sums, not of a long one."""
    if a.dtype == tl.float32 and PRECISION == "ieee":
        return tl.fma(tl.dot(a, b, input_precision="ieee"), tl.full(acc.shape, 1.0, tl.float32), acc)  # `+` is merged
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def load_weight(pointers, col_ok, k_ok, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr):
    """[BLOCK_K, BLOCK_N] weights; masks only where a tile can hang over."""
    if EVEN_N and EVEN_K:
        return tl.load(pointers)
    elif EVEN_N:
        return tl.load(pointers, mask=k_ok[:, None], other=0.0)
    elif EVEN_K:
        return tl.load(pointers, mask=col_ok[None, :], other=0.0)
    else:
        return tl.load(pointers, mask=k_ok[:, None] & col_ok[None, :], other=0.0)


@triton.jit
def tap_start(
    trip,
    stride_xh,
    stride_xw,
    C_PER_GROUP: tl.constexpr,
    KERNEL_W: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TAPS_INNER: tl.constexpr,
):
    """Counters at loop trip `trip`: (tap, its column, channel block, input offset, weight offset)."""
    BLOCKS: tl.constexpr = C_PER_GROUP // BLOCK_K
    if TAPS_INNER:
        tap = trip % TAPS
        block = trip // TAPS
    else:
        tap = trip // BLOCKS
        block = trip % BLOCKS
    column = tap % KERNEL_W
    x_offset = (tap // KERNEL_W) * (DILATION_H * stride_xh) + column * (DILATION_W * stride_xw) + block * BLOCK_K
    return tap, column, block, x_offset, tap * C_PER_GROUP + block * BLOCK_K


@triton.jit
def tap_advance(
    tap,
    column,
    block,
    x_offset,
    w_offset,
    stride_xh,
    stride_xw,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TAPS_INNER: tl.constexpr,
):
    """The counters of the next trip, by additions only (div and mod cost 11 to 12 % more instructions on sm_90)."""
    next_row = DILATION_H * stride_xh - KERNEL_W * DILATION_W * stride_xw
    if TAPS_INNER:
        COUNT: tl.constexpr = KERNEL_H * KERNEL_W
        tap += 1
        column += 1
        x_offset += DILATION_W * stride_xw
        w_offset += C_PER_GROUP
        wrap = column == KERNEL_W
        column = tl.where(wrap, 0, column)
        x_offset = tl.where(wrap, x_offset + next_row, x_offset)
        done = tap == COUNT
        tap = tl.where(done, 0, tap)
        x_offset = tl.where(done, x_offset + (BLOCK_K - KERNEL_H * DILATION_H * stride_xh), x_offset)
        w_offset = tl.where(done, w_offset + (BLOCK_K - COUNT * C_PER_GROUP), w_offset)
    else:
        block += 1
        done = block == C_PER_GROUP // BLOCK_K
        block = tl.where(done, 0, block)
        tap = tl.where(done, tap + 1, tap)
        column = tl.where(done, column + 1, column)
        x_offset = tl.where(done, x_offset + (DILATION_W * stride_xw - C_PER_GROUP + BLOCK_K), x_offset + BLOCK_K)
        w_offset += BLOCK_K
        wrap = column == KERNEL_W
        column = tl.where(wrap, 0, column)
        x_offset = tl.where(wrap, x_offset + next_row, x_offset)
    return tap, column, block, x_offset, w_offset


@triton.jit
def tap_reduction(
    acc,
    x_rows,
    w_cols,
    col_ok,
    reach,
    stride_xh,
    stride_xw,
    split,
    trips,
    total_trips,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    TAPS_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    TAPS: tl.constexpr,
    CACHE_A: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Acc + x[rows, tap, block] * w[tap, block, cols] over this split's `trips` (tap, channel block) pairs."""
    offs_k = tl.arange(0, BLOCK_K)
    x_tile = x_rows[:, None] + offs_k[None, :]  # [BLOCK_M, BLOCK_K]
    w_tile = w_cols[None, :] + offs_k[:, None]  # [BLOCK_K, BLOCK_N]
    begin = split * trips
    tap, column, block, x_offset, w_offset = tap_start(
        begin,
        stride_xh,
        stride_xw,
        C_PER_GROUP,
        KERNEL_W,
        KERNEL_H * KERNEL_W,
        DILATION_H,
        DILATION_W,
        BLOCK_K,
        TAPS_INNER,
    )
    for _ in tl.range(begin, tl.minimum(begin + trips, total_trips), num_stages=NUM_STAGES):
        bit = tap & 31 if KERNEL_H * KERNEL_W + NUM_STAGES > 32 else tap  # the pipeline prepares taps past the last
        mask = tap_mask(reach, bit, tap // KERNEL_W, column, TAPS)
        a = tl.load(x_tile + tl.multiple_of(x_offset, X_ALIGN), mask=mask, other=0.0, cache_modifier=CACHE_A)
        b = load_weight(w_tile + tl.multiple_of(w_offset, BLOCK_K), col_ok, offs_k < BLOCK_K, EVEN_N, True)
        acc = multiply_add(a, b, acc, PRECISION)
        tap, column, block, x_offset, w_offset = tap_advance(
            tap,
            column,
            block,
            x_offset,
            w_offset,
            stride_xh,
            stride_xw,
            C_PER_GROUP,
            KERNEL_H,
            KERNEL_W,
            DILATION_H,
            DILATION_W,
            BLOCK_K,
            TAPS_INNER,
        )
    return acc
