"""Steps of the packed-groups kernel: which channels a pack holds, its block-diagonal weights, and its products.

A pack is PACK adjacent groups side by side: BLOCK_K columns of input channels, BLOCK_N columns of output channels.
Off the diagonal of groups the weights are zero. Rows are strips of STRIP output pixels of one image row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.jit_index import OUTSIDE, inside
from grouped_conv.kernels.jit_reduction import multiply_add


@triton.jit
def pack_columns(
    pack,
    channels,
    PACK: tl.constexpr,
    PER_GROUP: tl.constexpr,
    SHUFFLE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The channels of a pack in the order that lies together in memory, [BLOCK] each.

    Returns (memory channel, logical channel, channel within its group, group within the pack, is there one?) for the
    shuffle that puts logical channel `j * SHUFFLE + i` at memory channel `i * (channels / SHUFFLE) + j`.
    """
    column = tl.arange(0, BLOCK)
    if PER_GROUP % SHUFFLE == 0:  # for each i the pack's channels are one run of memory
        EACH: tl.constexpr = PER_GROUP // SHUFFLE
        RUN: tl.constexpr = PACK * EACH
        run = channels // SHUFFLE
        within = column % RUN
        i = column // RUN
        member = within // EACH
        index = (within % EACH) * SHUFFLE + i
        memory = pack * RUN + within
        ok = memory < run
        if SHUFFLE == 1:
            logical = memory
        else:
            memory += i * run
            logical = (pack * PACK + member) * PER_GROUP + index
    else:
        member = column // PER_GROUP
        index = column % PER_GROUP
        logical = pack * (PACK * PER_GROUP) + column
        memory = (logical % SHUFFLE) * (channels // SHUFFLE) + logical // SHUFFLE
        ok = logical < channels
    if EVEN:
        ok = column < BLOCK
    else:
        ok = ok & (column < PACK * PER_GROUP)
    return memory, logical, index, member, ok


@triton.jit
def weight_tile(w_pointers, diagonal, tap, C_PER_GROUP: tl.constexpr):
    """[BLOCK_K, BLOCK_N] weights of one tap, zero off the diagonal."""
    return tl.load(w_pointers + tap * C_PER_GROUP, mask=diagonal, other=0.0)


@triton.jit
def resident_weights(w_pointers, diagonal, TAPS: tl.constexpr, C_PER_GROUP: tl.constexpr):
    """The tiles of all taps, as a tuple."""
    tiles = (weight_tile(w_pointers, diagonal, 0, C_PER_GROUP),)
    for tap in tl.static_range(1, TAPS):
        tiles = tiles + (weight_tile(w_pointers, diagonal, tap, C_PER_GROUP),)
    return tiles


@triton.constexpr_function
def column_needed(column, STRIP, STRIDE_W, KERNEL_W, DILATION_W):
    """Does any tap of any pixel of a strip read the input column at this distance from the first?"""
    return any(column == u * STRIDE_W + s * DILATION_W for u in range(STRIP) for s in range(KERNEL_W))


@triton.constexpr_function
def column_tap(column, u, STRIDE_W, KERNEL_W, DILATION_W):
    """The tap through which pixel `u` of a strip reads that column; -1 for none."""
    reach = column - u * STRIDE_W
    return reach // DILATION_W if reach >= 0 and reach % DILATION_W == 0 and reach // DILATION_W < KERNEL_W else -1


@triton.jit
def add_column(
    a,
    weights,
    sums,
    FIRST_TAP: tl.constexpr,
    COLUMN: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    STRIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sums of a strip with the products of one input column added, through whichever tap each pixel reads it."""
    added = ()
    for u in tl.static_range(STRIP):
        if column_tap(COLUMN, u, STRIDE_W, KERNEL_W, DILATION_W) >= 0:
            tile = weights[FIRST_TAP + column_tap(COLUMN, u, STRIDE_W, KERNEL_W, DILATION_W)]
            added = added + (multiply_add(a, tile, sums[u], PRECISION),)
        else:
            added = added + (sums[u],)
    return added


@triton.jit
def strip_products(
    x_pointers,
    column_ok,
    weights,
    ih0,
    iw0,
    IN_H,
    IN_W,
    stride_xh,
    STRIDE_XW: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STRIP: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of each of a strip's pixels, a tuple of STRIP tiles [BLOCK_M, BLOCK_N]; each input pixel is read once."""
    BLOCK_M: tl.constexpr = x_pointers.shape[0]
    BLOCK_N: tl.constexpr = weights[0].shape[1]
    COLUMNS: tl.constexpr = (STRIP - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1
    zero = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sums = (zero,)
    for _ in tl.static_range(1, STRIP):
        sums = sums + (zero,)
    for r in tl.static_range(KERNEL_H):
        row_ok = inside(ih0 + r * DILATION_H, IN_H)
        x_row = x_pointers + (r * DILATION_H) * stride_xh
        for column in tl.static_range(COLUMNS):
            if column_needed(column, STRIP, STRIDE_W, KERNEL_W, DILATION_W):
                mask = (row_ok & inside(iw0 + column, IN_W))[:, None]
                if not EVEN_K:
                    mask = mask & column_ok[None, :]
                a = tl.load(x_row + column * STRIDE_XW, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_K]
                sums = add_column(a, weights, sums, r * KERNEL_W, column, KERNEL_W, STRIDE_W, DILATION_W, STRIP, PRECISION)
    return sums


@triton.jit
def tap_products(
    x_pointers,
    column_ok,
    w_pointers,
    diagonal,
    ih0,
    iw0,
    IN_H,
    IN_W,
    stride_xh,
    STRIDE_XW: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums [BLOCK_M, BLOCK_N] of one pixel per row, tap by tap; nothing stays between taps but the sums."""
    acc = tl.zeros((x_pointers.shape[0], w_pointers.shape[1]), tl.float32)
    for tap in tl.range(0, KERNEL_H * KERNEL_W, num_stages=1):
        h = (tap // KERNEL_W) * DILATION_H
        w = (tap % KERNEL_W) * DILATION_W
        mask = (inside(ih0 + h, IN_H) & inside(iw0 + w, IN_W))[:, None] & column_ok[None, :]
        a = tl.load(x_pointers + (h * stride_xh + w * STRIDE_XW), mask=mask, other=0.0)
        acc = multiply_add(a, weight_tile(w_pointers, diagonal, tap, C_PER_GROUP), acc, PRECISION)
    return acc


@triton.jit
def isolated_products(
    x_pointers,
    column_ok,
    member_k,
    member_n,
    w_pointers,
    diagonal,
    ih0,
    iw0,
    IN_H,
    IN_W,
    stride_xh,
    STRIDE_XW: tl.constexpr,
    PACK: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same sums, each group's from a pass that reads only its own channels: 0 * inf cannot cross groups."""
    acc = tl.zeros((x_pointers.shape[0], w_pointers.shape[1]), tl.float32)
    for member in tl.range(0, PACK, num_stages=1):
        own = tap_products(
            x_pointers, column_ok & (member_k == member), w_pointers, diagonal, ih0, iw0, IN_H, IN_W, stride_xh,
            STRIDE_XW, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, PRECISION,
        )  # fmt: skip
        acc = tl.where((member_n == member)[None, :], own, acc)
    return acc


@triton.jit
def first_strips(program, OUT_H, strips_w, TILES: tl.constexpr, BLOCK_M: tl.constexpr, WIDE_M: tl.constexpr):
    """(image, output row, strip of that row) of the rows of a program's first tile, [BLOCK_M] each."""
    if WIDE_M:
        strip = program.to(tl.int64) * (TILES * BLOCK_M) + tl.arange(0, BLOCK_M)
    else:
        strip = program * (TILES * BLOCK_M) + tl.arange(0, BLOCK_M)
    row = strip // strips_w
    return (row // OUT_H).to(tl.int32), (row % OUT_H).to(tl.int32), (strip % strips_w).to(tl.int32)


@triton.jit
def next_strips(image, out_h, strip_w, OUT_H, strips_w, step_n, step_h, step_w):
    """The same BLOCK_M strips further on, by additions and carries only."""
    strip_w += step_w
    carry = strip_w >= strips_w
    strip_w = tl.where(carry, strip_w - strips_w, strip_w)
    out_h += tl.where(carry, step_h + 1, step_h)
    carry = out_h >= OUT_H
    out_h = tl.where(carry, out_h - OUT_H, out_h)
    return image + tl.where(carry, step_n + 1, step_n), out_h, strip_w


@triton.jit
def window_start(
    image,
    out_h,
    out_w,
    images,
    stride_xn,
    stride_xh,
    STRIDE_XW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
):
    """(first input row, first input column, their offset) of each window; rows past the last image are outside."""
    ih0 = out_h * STRIDE_H - PAD_H
    iw0 = out_w * STRIDE_W - PAD_W
    offset = image.to(tl.int64) * stride_xn + ih0.to(tl.int64) * stride_xh + iw0.to(tl.int64) * STRIDE_XW
    return tl.where(image < images, ih0, OUTSIDE), iw0, offset
