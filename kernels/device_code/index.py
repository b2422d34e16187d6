"""Index arithmetic shared by the kernels: a program's tile, its rows' pixels, and which taps are inside the image."""

from __future__ import annotations

import triton
import triton.language as tl

OUTSIDE = tl.constexpr(-(1 << 30))  # a coordinate no window reaches


@triton.jit
def decode_tile(tiles_m, TILES_N: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE_M: tl.constexpr):
    """(pixel tile, channel tile, group, split) of this program: bands of SWIZZLE_M pixel tiles, groups outermost."""
    pid = tl.program_id(0)
    tiles = tiles_m * TILES_N
    outer = pid // tiles
    tile = pid % tiles
    band = SWIZZLE_M * TILES_N
    first_m = tile // band * SWIZZLE_M
    band_m = tl.minimum(tiles_m - first_m, SWIZZLE_M)
    within = tile % band
    return first_m + within % band_m, within // band_m, outer // SPLIT_K, outer % SPLIT_K


@triton.jit
def decode_pixels(pid_m, OUT_H, OUT_W, BLOCK_M: tl.constexpr, WIDE_M: tl.constexpr):
    """(flat index, image, output row, output column) of each of a tile's rows, [BLOCK_M] each."""
    if WIDE_M:
        m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    else:
        m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m // OUT_W
    return m, row // OUT_H, row % OUT_H, m % OUT_W


@triton.jit
def shuffled(channel, SHUFFLE: tl.constexpr, CHANNELS: tl.constexpr):
    """Where a channel shuffle of CHANNELS channels in SHUFFLE groups puts `channel`."""
    if SHUFFLE == 1:
        return channel
    else:
        RUN: tl.constexpr = CHANNELS // SHUFFLE
        return channel % RUN * SHUFFLE + channel // RUN


@triton.jit
def inside(coordinate, SIZE):
    """0 <= coordinate < SIZE in one unsigned comparison."""
    return coordinate.to(tl.uint32, bitcast=True) < SIZE.to(tl.uint32, bitcast=True)


@triton.jit
def tap_bits(h, w, height, width, TAPS: tl.constexpr):
    """One word per row, [BLOCK_M, 1]: bit t says that tap t is inside; or row bits below 16 and column bits above."""
    bits = tl.zeros_like(h)
    if TAPS.MODE == "word":
        for tap in tl.static_range(TAPS.ROWS * TAPS.COLUMNS):
            ok_h = inside(h + (tap // TAPS.COLUMNS) * TAPS.DOWN, height)
            ok_w = inside(w + (tap % TAPS.COLUMNS) * TAPS.RIGHT, width)
            bits = bits | ((ok_h & ok_w).to(tl.int32) << tap)
    elif TAPS.MODE == "row_column":
        for row in tl.static_range(TAPS.ROWS):
            bits = bits | (inside(h + row * TAPS.DOWN, height).to(tl.int32) << row)
        for column in tl.static_range(TAPS.COLUMNS):
            bits = bits | (inside(w + column * TAPS.RIGHT, width).to(tl.int32) << (16 + column))
    return bits[:, None]


@triton.jit
def tap_mask(reach, tap, row, column, TAPS: tl.constexpr):
    """Is this tap of each row inside the image? Taps are scalars or [1, BLOCK_K], below 32 (rows, columns below 16)."""
    if TAPS.MODE == "word":
        return ((reach.bits >> tap) & 1) != 0
    elif TAPS.MODE == "row_column":
        return ((reach.bits >> row) & (reach.bits >> (16 + column)) & 1) != 0
    else:
        ok_h = inside(reach.h[:, None] + row * TAPS.DOWN, reach.height)
        return ok_h & inside(reach.w[:, None] + column * TAPS.RIGHT, reach.width)


@triton.jit
def next_pixels(image, out_h, out_w, over_n, over_h, over_w, OUT_H, OUT_W):
    """The pixels a step further on; a step is `over_n` images, `over_h` rows and `over_w` columns."""
    out_w += over_w
    carry = (out_w >= OUT_W).to(tl.int32)
    out_w -= carry * OUT_W
    out_h += over_h + carry
    carry = (out_h >= OUT_H).to(tl.int32)
    return image + over_n + carry, out_h - carry * OUT_H, out_w
