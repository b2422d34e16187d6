"""Steps of the packed kernels: which channels a pack has, its block-diagonal weights, and the products of its strips.

A pack is PACK adjacent groups: a tile of input channels on one side, one of output channels on the other. Weights
between different groups are zero. Rows of a tile are strips of STRIP neighboring pixels of one image row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.epilogue import activate, store_tile
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import OUTSIDE, inside
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.packed.bundles import Columns, Place


@triton.jit
def pack_columns(pack, channels, SIDE: tl.constexpr, zero=0):
    """The channels of one side of a pack.

    A shuffle puts logical channel `j * SHUFFLE + i` at memory channel `i * (channels / SHUFFLE) + j`.
    """
    PER_GROUP: tl.constexpr = SIDE.PER_GROUP
    WIDTH: tl.constexpr = SIDE.GROUPS * PER_GROUP
    column = tl.arange(0, SIDE.BLOCK) + zero
    if SIDE.SHUFFLE != 1 and PER_GROUP % SIDE.SHUFFLE == 0:  # for each i the pack's channels are one run of memory
        EACH: tl.constexpr = PER_GROUP // SIDE.SHUFFLE
        RUN: tl.constexpr = SIDE.GROUPS * EACH
        run = channels // SIDE.SHUFFLE
        within = column % RUN
        i = column // RUN
        member = within // EACH
        index = (within % EACH) * SIDE.SHUFFLE + i
        logical = (pack * SIDE.GROUPS + member) * PER_GROUP + index
        memory = (pack * RUN + within) + i * run
        ok = pack * RUN + within < run
    else:
        member = column // PER_GROUP
        index = column % PER_GROUP
        logical = pack * WIDTH + column
        memory = logical
        if SIDE.SHUFFLE != 1:
            memory = (logical % SIDE.SHUFFLE) * (channels // SIDE.SHUFFLE) + logical // SIDE.SHUFFLE
        ok = logical < channels
    ok = column < SIDE.BLOCK if SIDE.EVEN else ok & (column < WIDTH)
    return Columns(memory, logical, index, member, ok)


@triton.jit
def weight_tile(weights, tap, PACK: tl.constexpr):
    """[BLOCK_K, BLOCK_N] weights of one tap, zero off the diagonal."""
    return tl.load(weights.ptr + tap * PACK.IN.PER_GROUP + weights.offsets, mask=weights.diagonal, other=0.0)


@triton.jit
def resident_weights(weights, WINDOW: tl.constexpr, PACK: tl.constexpr):
    """The tiles of all taps, as a tuple."""
    tiles = ()
    for tap in tl.static_range(WINDOW.KERNEL_H * WINDOW.KERNEL_W):
        tiles = tiles + (weight_tile(weights, tap, PACK),)
    return tiles


@triton.constexpr_function
def columns_between(STRIP, KERNEL_W, STRIDE_W, DILATION_W):
    """Input columns from the first to the last one that the windows of a strip read."""
    return (STRIP - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1


@triton.constexpr_function
def column_needed(column, STRIP, KERNEL_W, STRIDE_W, DILATION_W):
    """Does any tap of any pixel of a strip read the input column at this distance from the first?"""
    return any(column == u * STRIDE_W + s * DILATION_W for u in range(STRIP) for s in range(KERNEL_W))


@triton.constexpr_function
def column_tap(column, u, KERNEL_W, STRIDE_W, DILATION_W):
    """The tap through which pixel `u` of a strip reads that column; -1 for none."""
    reach = column - u * STRIDE_W
    return reach // DILATION_W if reach >= 0 and reach % DILATION_W == 0 and reach // DILATION_W < KERNEL_W else -1


@triton.jit
def load_row(source, h, WINDOW: tl.constexpr, STRIP: tl.constexpr, EVEN: tl.constexpr, DERIVATIVE: tl.constexpr):
    """The row of each strip's window that is `h` rows below its first: a tile [BLOCK, channels] for each column.

    A column that no tap reads has a stand-in.
    """
    known_row = source.pointers
    if DERIVATIVE.ACTIVATION != "none":
        known_row = source.known + h * source.known_strides.h
    row = source.pointers + h * source.strides.h
    row_ok = inside(source.h0 + h, source.height)
    tiles = ()
    for column in tl.static_range(columns_between(STRIP, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.DILATION_W)):
        if column_needed(column, STRIP, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.DILATION_W):
            mask = (row_ok & inside(source.w0 + column, source.width))[:, None]
            if not EVEN:
                mask = mask & source.ok[None, :]
            known = known_row
            if DERIVATIVE.ACTIVATION != "none":
                known = known_row + column * source.known_strides.w
            tiles = tiles + (load_gradient(row + column * source.strides.w, known, mask, source.scale, DERIVATIVE),)
        else:
            tiles = tiles + (row_ok,)  # Triton 3.8 has no tuples that hold None
    return tiles


@triton.jit
def add_row(tiles, resident, sums, ROW: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """The sums of a strip's pixels with the products of one window row added, each through the tap that reads it."""
    COLUMNS: tl.constexpr = columns_between(TILE.STRIP, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.DILATION_W)
    for column in tl.static_range(COLUMNS):
        added = ()
        for u in tl.static_range(TILE.STRIP):
            if column_tap(column, u, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.DILATION_W) >= 0:
                weight = resident[
                    ROW * WINDOW.KERNEL_W + column_tap(column, u, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.DILATION_W)
                ]
                added = added + (multiply_add(tiles[ROW * COLUMNS + column], weight, sums[u], TILE.PRECISION),)
            else:
                added = added + (sums[u],)
        sums = added
    return sums


@triton.jit
def strip_products(
    start, source, resident, WINDOW: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr, DERIVATIVE: tl.constexpr
):
    """`start` + the products of each of a strip's pixels: a tuple of STRIP tiles [BLOCK, channels].

    Each pixel of the window is read once, AHEAD rows before it is multiplied: their loads wait together.
    """
    sums = ()
    for _ in tl.static_range(TILE.STRIP):
        sums = sums + (start,)
    tiles = ()
    for r in tl.static_range(WINDOW.KERNEL_H + TILE.AHEAD):
        if r < WINDOW.KERNEL_H:
            tiles = tiles + load_row(source, r * WINDOW.DILATION_H, WINDOW, TILE.STRIP, EVEN, DERIVATIVE)
        if r >= TILE.AHEAD:
            sums = add_row(tiles, resident, sums, r - TILE.AHEAD, WINDOW, TILE)
    return sums


@triton.jit
def tap_products(acc, source, ok, weights, taps, WINDOW: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr):
    """`acc` + the products of one pixel per row with `taps` taps and the input channels `ok`, tap by tap.

    Nothing but the sums stays from one tap to the next.
    """
    for tap in tl.range(0, taps, num_stages=1):
        h = (tap // WINDOW.KERNEL_W) * WINDOW.DILATION_H
        w = (tap % WINDOW.KERNEL_W) * WINDOW.DILATION_W
        mask = (inside(source.h0 + h, source.height) & inside(source.w0 + w, source.width))[:, None] & ok[None, :]
        a = tl.load(source.pointers + (h * source.strides.h + w * source.strides.w), mask=mask, other=0.0)
        acc = multiply_add(a, weight_tile(weights, tap, PACK), acc, TILE.PRECISION)
    return acc


@triton.jit
def isolated_products(
    start, source, into, out, weights, taps, WINDOW: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr
):
    """`start` + the products of one pixel per row, each output channel with the input channels of its group only."""
    acc = start
    for member in tl.range(0, PACK.IN.GROUPS, num_stages=1):
        own = tap_products(start, source, into.ok & (into.member == member), weights, taps, WINDOW, PACK, TILE)
        acc = tl.where((out.member == member)[None, :], own, acc)
    return acc


@triton.jit
def hidden_zero(images):
    """A zero that the compiler cannot see through: indices made anew from it share nothing with those made before.

    A rarely taken branch uses it, so that the loop before the branch holds no registers for it. It is made of `images`:
    that a sum is NaN tells the compiler that a program's number of tiles is positive.
    """
    return images >> 31


@triton.jit
def first_strips(walk, TILE: tl.constexpr, zero=0):
    """The strips of a program's first tile."""
    program = walk.program.to(tl.int64) if TILE.WIDE else walk.program
    strip = program * (walk.tiles * TILE.BLOCK) + (tl.arange(0, TILE.BLOCK) + zero)
    row = strip // walk.strips
    return Place((row // walk.rows).to(tl.int32), (row % walk.rows).to(tl.int32), (strip % walk.strips).to(tl.int32))


@triton.jit
def next_strips(place, walk):
    """The strips of the tile after that, by additions and carries only."""
    strip = place.strip + walk.step_w
    carry = strip >= walk.strips
    strip = tl.where(carry, strip - walk.strips, strip)
    row = place.row + tl.where(carry, walk.step_h + 1, walk.step_h)
    carry = row >= walk.rows
    row = tl.where(carry, row - walk.rows, row)
    return Place(place.image + tl.where(carry, walk.step_n + 1, walk.step_n), row, strip)


@triton.jit
def window_start(place, column, images, strides, WINDOW: tl.constexpr):
    """(first input row, first input column, their offset) of each window; rows past the last image are outside."""
    h0 = place.row * WINDOW.STRIDE_H - WINDOW.PAD_H
    w0 = column * WINDOW.STRIDE_W - WINDOW.PAD_W
    offset = place.image.to(tl.int64) * strides.n + h0.to(tl.int64) * strides.h + w0.to(tl.int64) * strides.w
    return tl.where(place.image < images, h0, OUTSIDE), w0, offset


@triton.jit
def per_channel(ptr, side):
    """A vector of the output channels in fp32, [BLOCK]."""
    return tl.load(ptr + side.logical, mask=side.ok, other=0.0).to(tl.float32)


@triton.jit
def first_sums(bias, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What the products are added to: the bias, or zero where a scale comes between."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if bias is not None and scale is None:
        sums += bias[None, :]
    return sums


@triton.jit
def finish_pixels(acc, scale, bias, epilogue, r_rows, y_rows, row_ok, out, FINISH: tl.constexpr):
    """The epilogue of one pixel per row, and its stores; without a scale the sums began with the bias."""
    if scale is not None:
        acc = acc * scale[None, :]
        if bias is not None:
            acc = acc + bias[None, :]
    if epilogue.residual is not None:
        residual = epilogue.residual + (r_rows[:, None] + (out.logical * epilogue.stride_rc)[None, :])
        acc += tl.load(residual, mask=row_ok[:, None] & out.ok[None, :], other=0.0).to(tl.float32)
    if epilogue.pre is not None:
        store_tile(epilogue.pre, acc, y_rows, out.logical, epilogue.stride_yc, row_ok, out.ok, FINISH.VECTOR)
    acc = activate(acc, FINISH.ACTIVATION, FINISH.NEGATIVE_SLOPE)
    store_tile(epilogue.y, acc, y_rows, out.memory, epilogue.stride_yc, row_ok, out.ok, FINISH.VECTOR)
