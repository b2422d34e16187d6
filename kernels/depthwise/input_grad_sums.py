"""The sums of a register tile of input gradients: which gradients meet which weights, unrolled or in loops."""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.bundles import Gradients, Place, Taps, TileAxis, plain
from grouped_conv.kernels.depthwise.gradient_steps import (
    channel_bases,
    end_place,
    first_place,
    is_first_use,
    is_reached,
    load_gradients,
    reached_tap,
    with_tap,
)
from grouped_conv.kernels.depthwise.tile_blocks import channel_vectors
from grouped_conv.kernels.device_code.index import inside


@triton.constexpr_function
def weight_index(t, row, column, rows, columns, multipliers):
    """The first of the weights that multiply the gradient at (row, column) for pixel `t` of a tile; -1 for none."""
    across = plain(columns)
    tap_h = reached_tap(row, t // across.TILE, rows)
    tap_w = reached_tap(column, t % across.TILE, columns)
    return -1 if tap_h < 0 or tap_w < 0 else (tap_h * across.TAPS + tap_w) * multipliers


@triton.jit
def add_multipliers(total, dy, w, INDEX: tl.constexpr, MULTIPLIERS: tl.constexpr):
    """Total + the products of all multipliers, whose weights begin at INDEX; total as it is for a negative index."""
    if INDEX >= 0:
        for m in tl.static_range(MULTIPLIERS):
            total = total + dy[m] * w[INDEX + m]
    return total


@triton.jit
def new_taps(w, taps, row: tl.constexpr, column: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             CHANNELS: tl.constexpr):  # fmt: skip
    """`w` with the weights that the tile first multiplies with the gradient at (row, column)."""
    for r in tl.static_range(ROWS.TAPS):
        if is_first_use(row, r, ROWS):
            for s in tl.static_range(COLUMNS.TAPS):
                if is_first_use(column, s, COLUMNS):
                    offset = r * taps.stride_r + s * taps.stride_s
                    w = with_tap(w, taps, offset, r * COLUMNS.TAPS + s, ROWS.TAPS * COLUMNS.TAPS, CHANNELS)
    return w


@triton.jit
def place_products(
    acc, w, gradients, at, ok, k_ok, row: tl.constexpr, column: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The sums after the gradient at one place of the window: one load, all its products."""
    g_offset = at.g + (row * gradients.g.h + column * gradients.g.w)
    k_offset = at.k + (row * gradients.k.h + column * gradients.k.w)
    dy = load_gradients(gradients.dy, gradients.known, g_offset, k_offset, ok, k_ok, CHANNELS, DERIVATIVE)
    added = ()
    for t in tl.static_range(ROWS.TILE * COLUMNS.TILE):
        total = add_multipliers(
            acc[t], dy, w, weight_index(t, row, column, ROWS, COLUMNS, CHANNELS.MULTIPLIERS), CHANNELS.MULTIPLIERS
        )
        added = added + (total,)
    return added


@triton.jit
def window_products(
    acc, gradients, taps, at, k_ok, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """Each gradient of the window is loaded once and serves all pixels; a weight is loaded where it is first used."""
    w = ()
    for _ in tl.static_range(ROWS.TAPS * COLUMNS.TAPS * CHANNELS.MULTIPLIERS):
        w = w + (acc[0],)  # overwritten before it is read
    for i in tl.static_range(first_place(ROWS), end_place(ROWS)):
        if is_reached(i, ROWS):
            row_ok = inside(at.h + i, gradients.height)
            for j in tl.static_range(first_place(COLUMNS), end_place(COLUMNS)):
                if is_reached(j, COLUMNS):
                    ok = row_ok & inside(at.w + j, gradients.width)
                    w = new_taps(w, taps, i, j, ROWS, COLUMNS, CHANNELS)
                    acc = place_products(
                        acc, w, gradients, at, ok, k_ok, i, j, ROWS, COLUMNS, CHANNELS, DERIVATIVE
                    )  # fmt: skip
    return acc


@triton.jit
def back(at, pointers, gradients, taps, rows, columns, kernel_row, kernel_column):
    """The place so many output rows and columns before, and `pointers` to weights so many of the kernel's after."""
    h = at.h - rows
    pointers = pointers + kernel_row * taps.stride_r + kernel_column * taps.stride_s
    w = at.w - columns
    g = at.g - (rows * gradients.g.h + columns * gradients.g.w)
    k = at.k - (rows * gradients.k.h + columns * gradients.k.w)
    return Place(h, w, g, k), pointers


@triton.jit
def looped_products(
    acc, gradients, taps, at, loop, k_ok, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    CODE: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The same with loops over a class's kernel rows and over whole CHUNKs of columns, the other columns after them."""
    CHUNK: tl.constexpr = CODE.CHUNK
    BACK_H: tl.constexpr = ROWS.DILATION * CODE.STEP // ROWS.STRIDE  # output rows from one kernel row to the next
    BACK_W: tl.constexpr = CHUNK * COLUMNS.DILATION // COLUMNS.STRIDE  # output columns from one chunk to the next
    REST: tl.constexpr = COLUMNS.TAPS % CHUNK if CHUNK < COLUMNS.TAPS else COLUMNS.TAPS
    CHUNKS: tl.constexpr = (COLUMNS.TAPS - REST) // CHUNK
    ROW: tl.constexpr = TileAxis(1, 1, 0, 1, ROWS.TILE)
    PART: tl.constexpr = TileAxis(CHUNK, COLUMNS.STRIDE, COLUMNS.PAD, COLUMNS.DILATION, COLUMNS.TILE)
    LAST: tl.constexpr = TileAxis(REST, COLUMNS.STRIDE, COLUMNS.PAD, COLUMNS.DILATION, COLUMNS.TILE)
    for q in tl.range(loop.rows):
        row_at, w_row = back(at, taps.base, gradients, taps, q * BACK_H, 0, loop.first + q * CODE.STEP, 0)
        if CHUNK < COLUMNS.TAPS:
            for chunk in tl.range(loop.chunks):
                part_at, w = back(row_at, w_row, gradients, taps, 0, chunk * BACK_W, 0, chunk * CHUNK)
                acc = window_products(
                    acc, gradients, Taps(w, taps.ok, taps.scale, taps.stride_m, taps.stride_r, taps.stride_s), part_at,
                    k_ok, ROW, PART, CHANNELS, DERIVATIVE,
                )  # fmt: skip
        if REST > 0:
            rest_at, w = back(row_at, w_row, gradients, taps, 0, CHUNKS * BACK_W, 0, CHUNKS * CHUNK)
            acc = window_products(
                acc, gradients, Taps(w, taps.ok, taps.scale, taps.stride_m, taps.stride_r, taps.stride_s), rest_at,
                k_ok, ROW, LAST, CHANNELS, DERIVATIVE,
            )  # fmt: skip
    return acc


@triton.jit
def tap_products(
    acc, gradients, taps, at, loop, k_ok, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    CODE: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The sums with the products of all taps."""
    if CODE.ROW_LOOP:
        return looped_products(acc, gradients, taps, at, loop, k_ok, ROWS, COLUMNS, CHANNELS, CODE, DERIVATIVE)
    else:
        return window_products(acc, gradients, taps, at, k_ok, ROWS, COLUMNS, CHANNELS, DERIVATIVE)


@triton.jit
def part_products(
    acc, first, gradients, weights, share, at, loop, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    CODE: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The sums with the products of MULTIPLIERS output channels per input channel, from `first` on."""
    lanes = tl.zeros_like(at.h)  # channel vectors are [BLOCK_P, BLOCK_C], as the gradients
    dy = channel_bases(gradients.dy, at.g, share, first, DERIVATIVE.SHUFFLE, DERIVATIVE.OUT_CHANNELS, CHANNELS)
    known = dy
    if DERIVATIVE.ACTIVATION != "none":
        known = channel_bases(
            gradients.known, at.k, share, first, DERIVATIVE.SHUFFLE_KNOWN, DERIVATIVE.OUT_CHANNELS, CHANNELS
        )
    scale = None
    if weights.scale is not None:
        k = (share.c * CHANNELS.PER_GROUP + first)[None, :] + lanes
        scale = channel_vectors(weights.scale, k, share.c_ok, CHANNELS, 1.0)
    w_base = share.c.to(tl.int64) * weights.stride_c + tl.cast(first, tl.int64) * weights.stride_m
    w = weights.w + (w_base[None, :] + lanes)
    return tap_products(
        acc, Gradients(dy, known, gradients.height, gradients.width, gradients.g, gradients.k),
        Taps(w, share.c_ok, scale, weights.stride_m, weights.stride_r, weights.stride_s), Place(at.h, at.w, 0, 0), loop,
        share.k_ok, ROWS, COLUMNS, CHANNELS, CODE, DERIVATIVE,
    )  # fmt: skip


@triton.jit
def all_products(
    gradients, weights, share, at, loop, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    CODE: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The sums of a register tile, in `parts` of the output channels."""
    acc = ()
    for _ in tl.static_range(ROWS.TILE * COLUMNS.TILE):
        acc = acc + (tl.zeros((at.h.shape[0], CHANNELS.BLOCK), tl.float32),)
    if CHANNELS.MULTIPLIERS == CHANNELS.PER_GROUP:  # no loop: its carried sums and hoisted weights spilled at 3x3
        acc = part_products(acc, 0, gradients, weights, share, at, loop, ROWS, COLUMNS, CHANNELS, CODE, DERIVATIVE)
    else:
        for part in tl.range(parts):
            acc = part_products(
                acc, part * CHANNELS.MULTIPLIERS, gradients, weights, share, at, loop, ROWS, COLUMNS, CHANNELS, CODE,
                DERIVATIVE,
            )  # fmt: skip
    return acc
