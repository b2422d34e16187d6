"""The reductions of the implicit GEMM: products over kernel taps and input channels into one accumulator.

`flat_reduction` walks (kernel row, kernel column, channel) as one index and takes any number of channels.
`tap_reduction` walks whole channel blocks of one tap with carried counters, in either loop order.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.index import shuffled, tap_mask


class Source(NamedTuple):
    """Pointers to the first tap of each row, [BLOCK_M], read where a tap is inside; strides of rows and columns."""

    rows: tl.tensor
    stride_h: tl.tensor
    stride_w: tl.tensor


class Weights(NamedTuple):
    """Pointers to the first weight of each column, [BLOCK_N], and which columns the group has."""

    columns: tl.tensor
    ok: tl.tensor


class Part(NamedTuple):
    """The part of the reduction that a program adds up: which of `total` steps, `trips` to a split."""

    split: tl.tensor
    trips: tl.tensor
    total: tl.tensor


class Loop(NamedTuple):
    """How the reduction is walked.

    Attributes:
        ORDER: "flat", "channels_inner" or "taps_inner".
        C_PER_GROUP, BLOCK_K: channels of a group and of a step.
        EVEN_N: whether all tiles have whole columns.
        CACHE_A: cache modifier of the input's loads.
        INPUT_SHUFFLE, IN_CHANNELS: the shuffle of the input's channels ("flat" only).
    """

    ORDER: str
    C_PER_GROUP: int
    BLOCK_K: int
    EVEN_N: bool
    CACHE_A: str
    PRECISION: str
    NUM_STAGES: int
    INPUT_SHUFFLE: int
    IN_CHANNELS: int


class Counters(NamedTuple):
    """Where `tap_reduction` is: the tap, its column, the channel block, offsets in the input and in the weights."""

    tap: tl.tensor
    column: tl.tensor
    block: tl.tensor
    x: tl.tensor
    w: tl.tensor


@triton.constexpr_function
def taps_fit(depth, c_per_group, kernel_w, tap_mode):
    """Do all taps of a reduction of `depth` have a bit of their own in the row's word?"""
    last_tap = (depth - 1) // c_per_group
    if tap_mode == "word":
        return last_tap <= 31
    return tap_mode == "row_column" and last_tap // kernel_w <= 15


@triton.jit
def flat_reduction(acc, source, weights, reach, part, group, TAPS: tl.constexpr, LOOP: tl.constexpr):
    """Acc + x[rows, k] * w[k, cols] over this split's blocks of the flat index k.

    Without a shuffle of the input `source.rows` begins at the group's first channel, with one at the image's.
    """
    C_PER_GROUP: tl.constexpr = LOOP.C_PER_GROUP
    BLOCK_K: tl.constexpr = LOOP.BLOCK_K
    PRECISION: tl.constexpr = LOOP.PRECISION
    DEPTH: tl.constexpr = TAPS.ROWS * TAPS.COLUMNS * C_PER_GROUP
    BLOCKS: tl.constexpr = (DEPTH + BLOCK_K - 1) // BLOCK_K
    # Taps past the last have bits of zero. Past the end of the word they need a mask; in the blocks that the pipeline
    # prepares beyond the loop's end they need only be legal shifts: the compiler may take those as it likes otherwise.
    MASK_K: tl.constexpr = not taps_fit(BLOCKS * BLOCK_K, C_PER_GROUP, TAPS.COLUMNS, TAPS.MODE)
    CLAMP: tl.constexpr = not taps_fit((BLOCKS + LOOP.NUM_STAGES - 1) * BLOCK_K, C_PER_GROUP, TAPS.COLUMNS, TAPS.MODE)
    offs_k = tl.arange(0, BLOCK_K)
    begin = part.split * part.trips * BLOCK_K
    end = tl.minimum(begin + part.trips * BLOCK_K, part.total * BLOCK_K)
    for k0 in tl.range(begin, end, BLOCK_K, num_stages=LOOP.NUM_STAGES):
        k = k0 + offs_k
        tap = k // C_PER_GROUP
        row = tap // TAPS.COLUMNS
        column = tap % TAPS.COLUMNS
        offset = row * (TAPS.DOWN * source.stride_h) + column * (TAPS.RIGHT * source.stride_w)
        if LOOP.INPUT_SHUFFLE == 1:
            offset += k % C_PER_GROUP
        else:  # a shuffle in C / s groups undoes one in s
            channel = group * C_PER_GROUP + k % C_PER_GROUP
            offset += shuffled(channel, LOOP.IN_CHANNELS // LOOP.INPUT_SHUFFLE, LOOP.IN_CHANNELS)
        if CLAMP and TAPS.MODE != "direct":
            tap = tap & 31
            row = row & 15
        mask = tap_mask(reach, tap[None, :], row[None, :], column[None, :], TAPS)
        if MASK_K:
            mask = mask & (k < DEPTH)[None, :]
        x_ptrs = source.rows[:, None] + offset[None, :]
        a = tl.load(x_ptrs, mask=mask, other=0.0, cache_modifier=LOOP.CACHE_A)  # [BLOCK_M, BLOCK_K]
        w_ptrs = weights.columns[None, :] + k[:, None]
        b = load_weight(w_ptrs, weights.ok, k < DEPTH, LOOP.EVEN_N, DEPTH % BLOCK_K == 0)
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
def tap_start(trip, source, TAPS: tl.constexpr, LOOP: tl.constexpr):
    """The counters at loop trip `trip`."""
    BLOCKS: tl.constexpr = LOOP.C_PER_GROUP // LOOP.BLOCK_K
    COUNT: tl.constexpr = TAPS.ROWS * TAPS.COLUMNS
    if LOOP.ORDER == "taps_inner":
        tap = trip % COUNT
        block = trip // COUNT
    else:
        tap = trip // BLOCKS
        block = trip % BLOCKS
    column = tap % TAPS.COLUMNS
    row = tap // TAPS.COLUMNS
    x = row * (TAPS.DOWN * source.stride_h) + column * (TAPS.RIGHT * source.stride_w) + block * LOOP.BLOCK_K
    return Counters(tap, column, block, x, tap * LOOP.C_PER_GROUP + block * LOOP.BLOCK_K)


@triton.jit
def next_tap(at, source, TAPS: tl.constexpr, LOOP: tl.constexpr):
    """The counters of the next trip where taps vary fastest."""
    COUNT: tl.constexpr = TAPS.ROWS * TAPS.COLUMNS
    next_row = TAPS.DOWN * source.stride_h - TAPS.COLUMNS * TAPS.RIGHT * source.stride_w
    tap = at.tap + 1
    column = at.column + 1
    x = at.x + TAPS.RIGHT * source.stride_w
    w = at.w + LOOP.C_PER_GROUP
    wrap = column == TAPS.COLUMNS
    column = tl.where(wrap, 0, column)
    x = tl.where(wrap, x + next_row, x)
    done = tap == COUNT
    tap = tl.where(done, 0, tap)
    x = tl.where(done, x + (LOOP.BLOCK_K - TAPS.ROWS * TAPS.DOWN * source.stride_h), x)
    w = tl.where(done, w + (LOOP.BLOCK_K - COUNT * LOOP.C_PER_GROUP), w)
    return Counters(tap, column, at.block, x, w)


@triton.jit
def next_block(at, source, TAPS: tl.constexpr, LOOP: tl.constexpr):
    """The counters of the next trip where channel blocks vary fastest."""
    next_row = TAPS.DOWN * source.stride_h - TAPS.COLUMNS * TAPS.RIGHT * source.stride_w
    block = at.block + 1
    done = block == LOOP.C_PER_GROUP // LOOP.BLOCK_K
    block = tl.where(done, 0, block)
    tap = tl.where(done, at.tap + 1, at.tap)
    column = tl.where(done, at.column + 1, at.column)
    x = tl.where(done, at.x + (TAPS.RIGHT * source.stride_w - LOOP.C_PER_GROUP + LOOP.BLOCK_K), at.x + LOOP.BLOCK_K)
    w = at.w + LOOP.BLOCK_K
    wrap = column == TAPS.COLUMNS
    column = tl.where(wrap, 0, column)
    x = tl.where(wrap, x + next_row, x)
    return Counters(tap, column, block, x, w)


@triton.jit
def tap_reduction(acc, source, weights, reach, part, X_ALIGN: tl.constexpr, TAPS: tl.constexpr, LOOP: tl.constexpr):
    """Acc + x[rows, tap, block] * w[tap, block, cols] over this split's (tap, channel block) pairs.

    The counters go up by additions only: div and mod cost 11 to 12 % more instructions on sm_90.
    """
    BLOCK_K: tl.constexpr = LOOP.BLOCK_K
    PRECISION: tl.constexpr = LOOP.PRECISION
    offs_k = tl.arange(0, BLOCK_K)
    x_tile = source.rows[:, None] + offs_k[None, :]  # [BLOCK_M, BLOCK_K]
    w_tile = weights.columns[None, :] + offs_k[:, None]  # [BLOCK_K, BLOCK_N]
    begin = part.split * part.trips
    at = tap_start(begin, source, TAPS, LOOP)
    for _ in tl.range(begin, tl.minimum(begin + part.trips, part.total), num_stages=LOOP.NUM_STAGES):
        # the pipeline prepares taps past the last
        bit = at.tap & 31 if TAPS.ROWS * TAPS.COLUMNS + LOOP.NUM_STAGES > 32 else at.tap
        mask = tap_mask(reach, bit, at.tap // TAPS.COLUMNS, at.column, TAPS)
        a = tl.load(x_tile + tl.multiple_of(at.x, X_ALIGN), mask=mask, other=0.0, cache_modifier=LOOP.CACHE_A)
        b = load_weight(w_tile + tl.multiple_of(at.w, BLOCK_K), weights.ok, offs_k < BLOCK_K, LOOP.EVEN_N, True)
        acc = multiply_add(a, b, acc, PRECISION)
        if LOOP.ORDER == "taps_inner":
            at = next_tap(at, source, TAPS, LOOP)
        else:
            at = next_block(at, source, TAPS, LOOP)
    return acc
