"""The sums of one register tile: which taps an input position serves, vectors of weights, products.

A register tile is TILE x TILE outputs (of rows and columns) of one thread in each of its channels, for MULTIPLIERS
output channels per input channel: a tuple of [BLOCK_P, BLOCK_C] tensors, index (m * rows + u) * columns + v.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.bundles import Patch, TileAxis, plain
from grouped_conv.kernels.device_code.index import inside


@triton.constexpr_function
def tap_of(position, output, axis):
    """The kernel row (or column) that output `output` of a tile takes from input `position`; -1 for none."""
    axis = plain(axis)
    tap, rest = divmod(position - output * axis.STRIDE, axis.DILATION)
    return tap if 0 <= tap < axis.TAPS and rest == 0 else -1


@triton.constexpr_function
def is_read(position, axis):
    """Does any output of a tile take anything from input `position`?"""
    return any(tap_of(position, output, axis) >= 0 for output in range(plain(axis).TILE))


@triton.constexpr_function
def span(axis):
    """Positions from the first to the last that a tile's outputs take."""
    axis = plain(axis)
    return (axis.TILE - 1) * axis.STRIDE + (axis.TAPS - 1) * axis.DILATION + 1


@triton.constexpr_function
def is_new(row, column, rows, columns):
    """Does a tile's first output take the input at (row, column)? No earlier input meets the weight of that tap."""
    return tap_of(row, 0, rows) >= 0 and tap_of(column, 0, columns) >= 0


@triton.constexpr_function
def weight_index(t, row, column, rows, columns, multipliers):
    """Which loaded weight multiplies the input at (row, column) of the tile's window in sum `t`; -1 for none."""
    m, pixel = divmod(t, plain(rows).TILE * plain(columns).TILE)
    tap_h = tap_of(row, pixel // plain(columns).TILE, rows)
    tap_w = tap_of(column, pixel % plain(columns).TILE, columns)
    return -1 if tap_h < 0 or tap_w < 0 else (tap_h * plain(columns).TAPS + tap_w) * multipliers + m


@triton.jit
def load_vector(ptrs, ok, MASKED: tl.constexpr):
    """[BLOCK_P, BLOCK_C] in fp32; zeros outside when MASKED."""
    if MASKED:
        return tl.load(ptrs, mask=ok, other=0.0).to(tl.float32)
    else:
        return tl.load(ptrs).to(tl.float32)


@triton.jit
def load_taps(w, row, taps, column: tl.constexpr, CHANNELS: tl.constexpr):
    """`w` with the weights of one more tap, one per multiplier; `row` points to the first tap of its kernel row."""
    for m in tl.static_range(CHANNELS.MULTIPLIERS):
        w = w + (load_vector(row + (m * taps.stride_m + column * taps.stride_s), taps.ok, not CHANNELS.EVEN),)
    return w


@triton.jit
def load_all_taps(taps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Every weight of this program's channels, index tap * MULTIPLIERS + m."""
    w = ()
    for tap in tl.static_range(ROWS.TAPS * COLUMNS.TAPS):
        row = taps.base + (tap // COLUMNS.TAPS) * taps.stride_r
        w = load_taps(w, row, taps, tap % COLUMNS.TAPS, CHANNELS)
    return w


@triton.jit
def add_product(acc, x, w, INDEX: tl.constexpr):
    """Acc + x * w[INDEX]; acc as it is for a negative index."""
    if INDEX >= 0:
        acc = acc + x * w[INDEX]
    return acc


@triton.jit
def multiply_add(
    acc, x, w, row: tl.constexpr, column: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the input at (row, column) of the tile's window, times its weight, to every sum that takes it."""
    added = ()
    for t in tl.static_range(CHANNELS.MULTIPLIERS * ROWS.TILE * COLUMNS.TILE):
        total = add_product(acc[t], x, w, weight_index(t, row, column, ROWS, COLUMNS, CHANNELS.MULTIPLIERS))
        added = added + (total,)
    return added


@triton.jit
def unrolled_sums(
    acc, w, patch, taps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, RESIDENT: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Each input of the tile's window is loaded once and serves all sums; a weight is loaded where it is first used."""
    for i in tl.static_range(span(ROWS)):
        if is_read(i, ROWS):
            row_ok = inside(patch.h + i, patch.height)
            x_row = patch.base + i * patch.stride_h
            for j in tl.static_range(span(COLUMNS)):
                if is_read(j, COLUMNS):
                    if not RESIDENT and is_new(i, j, ROWS, COLUMNS):
                        w_row = taps.base + tap_of(i, 0, ROWS) * taps.stride_r
                        w = load_taps(w, w_row, taps, tap_of(j, 0, COLUMNS), CHANNELS)
                    ok = row_ok & inside(patch.w + j, patch.width)
                    if not CHANNELS.EVEN:
                        ok = ok & taps.ok
                    x_ptrs = x_row + j * patch.stride_w
                    x = load_vector(x_ptrs, ok if MASKED else taps.ok, MASKED or not CHANNELS.EVEN)
                    acc = multiply_add(acc, x, w, i, j, ROWS, COLUMNS, CHANNELS)
    return acc


@triton.jit
def row_sums(
    acc, patch, w_row, taps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, MASKED: tl.constexpr
):
    """Add the products of COLUMNS.TAPS neighbours in one kernel row; rows of the window are not shared."""
    OUTPUTS: tl.constexpr = TileAxis(1, 1, 0, 1, ROWS.TILE)
    w = ()
    for j in tl.static_range(span(COLUMNS)):
        if is_read(j, COLUMNS):
            if tap_of(j, 0, COLUMNS) >= 0:
                w = load_taps(w, w_row, taps, tap_of(j, 0, COLUMNS), CHANNELS)
            column_ok = inside(patch.w + j, patch.width)
            if not CHANNELS.EVEN:
                column_ok = column_ok & taps.ok
            for u in tl.static_range(ROWS.TILE):
                ok = column_ok & inside(patch.h + u * ROWS.STRIDE, patch.height)
                x_ptrs = patch.base + u * ROWS.STRIDE * patch.stride_h + j * patch.stride_w
                x = load_vector(x_ptrs, ok if MASKED else taps.ok, MASKED or not CHANNELS.EVEN)
                acc = multiply_add(acc, x, w, u, j, OUTPUTS, COLUMNS, CHANNELS)
    return acc


@triton.jit
def from_tap(patch, w, taps, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The patch and the pointers `w` to weights, begun so many kernel rows and columns further on."""
    down = row * ROWS.DILATION
    right = column * COLUMNS.DILATION
    base = patch.base + down * patch.stride_h + right * patch.stride_w
    w = w + row * taps.stride_r + column * taps.stride_s
    return Patch(base, patch.h + down, patch.w + right, patch.height, patch.width, patch.stride_h, patch.stride_w), w


@triton.jit
def looped_sums(
    acc, patch, taps, loop, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The same with loops over kernel rows and over whole CHUNKs of columns, the other columns after them."""
    REST: tl.constexpr = COLUMNS.TAPS % CHUNK if CHUNK < COLUMNS.TAPS else COLUMNS.TAPS
    PART: tl.constexpr = TileAxis(CHUNK, COLUMNS.STRIDE, COLUMNS.PAD, COLUMNS.DILATION, COLUMNS.TILE)
    LAST: tl.constexpr = TileAxis(REST, COLUMNS.STRIDE, COLUMNS.PAD, COLUMNS.DILATION, COLUMNS.TILE)
    for row in tl.range(loop.rows):
        row_patch, w_row = from_tap(patch, taps.base, taps, row, 0, ROWS, COLUMNS)
        if CHUNK < COLUMNS.TAPS:
            for chunk in tl.range(loop.chunks):
                part, w = from_tap(row_patch, w_row, taps, 0, chunk * CHUNK, ROWS, COLUMNS)
                acc = row_sums(acc, part, w, taps, ROWS, PART, CHANNELS, MASKED)
        if REST > 0:
            rest, w = from_tap(row_patch, w_row, taps, 0, COLUMNS.TAPS - REST, ROWS, COLUMNS)
            acc = row_sums(acc, rest, w, taps, ROWS, LAST, CHANNELS, MASKED)
    return acc


@triton.jit
def window_sums(
    acc, w, patch, taps, loop, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, CODE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add the products of every input of the tile's window, with bounds checked where MASKED."""
    if CODE.ROW_LOOP:
        return looped_sums(acc, patch, taps, loop, ROWS, COLUMNS, CHANNELS, CODE.CHUNK, MASKED)
    else:
        return unrolled_sums(acc, w, patch, taps, ROWS, COLUMNS, CHANNELS, CODE.RESIDENT, MASKED)


@triton.jit
def tile_sums(
    w, affine, patch, taps, loop, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    CODE: tl.constexpr,
):  # fmt: skip
    """The sums of one register tile, begun with the bias where nothing scales them; INTERIOR branches per block."""
    acc = ()
    for t in tl.static_range(CHANNELS.MULTIPLIERS * ROWS.TILE * COLUMNS.TILE):
        bias = affine.bias[t // (ROWS.TILE * COLUMNS.TILE)]
        acc = acc + (bias if affine.scale is None else tl.zeros_like(bias),)
    if CODE.INTERIOR:
        if inner:
            acc = window_sums(acc, w, patch, taps, loop, ROWS, COLUMNS, CHANNELS, CODE, False)
        else:
            acc = window_sums(acc, w, patch, taps, loop, ROWS, COLUMNS, CHANNELS, CODE, True)
    else:
        acc = window_sums(acc, w, patch, taps, loop, ROWS, COLUMNS, CHANNELS, CODE, True)
    return acc
