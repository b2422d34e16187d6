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
def tap_bits(
    ih0,
    iw0,
    IN_H,
    IN_W,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TAP_MODE: tl.constexpr,
):
    """One word per row, [BLOCK_M, 1]: bit t says that tap t is inside; or row bits below 16 and column bits above."""
    bits = tl.zeros_like(ih0)
    if TAP_MODE == "word":
        for tap in tl.static_range(KERNEL_H * KERNEL_W):
            ok_h = inside(ih0 + (tap // KERNEL_W) * DILATION_H, IN_H)
            ok_w = inside(iw0 + (tap % KERNEL_W) * DILATION_W, IN_W)
            bits = bits | ((ok_h & ok_w).to(tl.int32) << tap)
    elif TAP_MODE == "row_column":
        for step_h in tl.static_range(KERNEL_H):
            bits = bits | (inside(ih0 + step_h * DILATION_H, IN_H).to(tl.int32) << step_h)
        for step_w in tl.static_range(KERNEL_W):
            bits = bits | (inside(iw0 + step_w * DILATION_W, IN_W).to(tl.int32) << (16 + step_w))
    return bits[:, None]


@triton.jit
def tap_mask(
    bits,
    ih0,
    iw0,
    IN_H,
    IN_W,
    tap,
    kernel_h,
    kernel_w,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TAP_MODE: tl.constexpr,
):
    """Is this tap of each row inside the image? Taps are scalars or [1, BLOCK_K], below 32 (rows, columns below 16)."""
    if TAP_MODE == "word":
        return ((bits >> tap) & 1) != 0
    elif TAP_MODE == "row_column":
        return ((bits >> kernel_h) & (bits >> (16 + kernel_w)) & 1) != 0
    else:
        return inside(ih0[:, None] + kernel_h * DILATION_H, IN_H) & inside(iw0[:, None] + kernel_w * DILATION_W, IN_W)


@triton.jit
def next_pixels(image, out_h, out_w, over_n, over_h, over_w, OUT_H, OUT_W):
    """The pixels a step further on; a step is `over_n` images, `over_h` rows and `over_w` columns."""
    out_w += over_w
    carry = (out_w >= OUT_W).to(tl.int32)
    out_w -= carry * OUT_W
    out_h += over_h + carry
    carry = (out_h >= OUT_H).to(tl.int32)
    return image + over_n + carry, out_h - carry * OUT_H, out_w
