"""Steps of the packed-groups kernel: which channels a pack holds, its block-diagonal weights, and its products.

A pack is PACK adjacent groups side by side: BLOCK_K columns of input channels, BLOCK_N columns of output channels.
Off the diagonal of groups the weights are zero. Rows are strips of STRIP output pixels of one image row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.epilogue import activate, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE, inside
from grouped_conv.kernels.device_code.reduction import multiply_add


@triton.jit
def pack_columns(
    pack,
    channels,
    PACK: tl.constexpr,
    PER_GROUP: tl.constexpr,
    SHUFFLE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    zero=0,
):
    """The channels of a pack in the order that lies together in memory, [BLOCK] each.

    Returns (memory channel, logical channel, channel within its group, group within the pack, is there one?) for the
    shuffle that puts logical channel `j * SHUFFLE + i` at memory channel `i * (channels / SHUFFLE) + j`.
    """
    column = tl.arange(0, BLOCK) + zero
    if SHUFFLE == 1:
        member = column // PER_GROUP
        index = column % PER_GROUP
        logical = pack * (PACK * PER_GROUP) + column
        memory = logical
        ok = logical < channels
    elif PER_GROUP % SHUFFLE == 0:  # for each i the pack's channels are one run of memory
        EACH: tl.constexpr = PER_GROUP // SHUFFLE
        RUN: tl.constexpr = PACK * EACH
        run = channels // SHUFFLE
        within = column % RUN
        i = column // RUN
        member = within // EACH
        index = (within % EACH) * SHUFFLE + i
        logical = (pack * PACK + member) * PER_GROUP + index
        memory = (pack * RUN + within) + i * run
        ok = pack * RUN + within < run
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
def weight_tile(w_ptr, w_offsets, diagonal, tap, C_PER_GROUP: tl.constexpr):
    """[BLOCK_K, BLOCK_N] weights of one tap, zero off the diagonal."""
    return tl.load(w_ptr + tap * C_PER_GROUP + w_offsets, mask=diagonal, other=0.0)


@triton.jit
def resident_weights(w_ptr, w_offsets, diagonal, TAPS: tl.constexpr, C_PER_GROUP: tl.constexpr):
    """The tiles of all taps, as a tuple."""
    tiles = (weight_tile(w_ptr, w_offsets, diagonal, 0, C_PER_GROUP),)
    for tap in tl.static_range(1, TAPS):
        tiles = tiles + (weight_tile(w_ptr, w_offsets, diagonal, tap, C_PER_GROUP),)
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
def load_row(
    x_row,
    row_ok,
    column_ok,
    iw0,
    IN_W,
    STRIDE_XW: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    STRIP: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One input row of each strip's window: COLUMNS tiles [BLOCK_M, BLOCK_K], a stand-in where no tap reads."""
    tiles = ()
    for column in tl.static_range(COLUMNS):
        if column_needed(column, STRIP, STRIDE_W, KERNEL_W, DILATION_W):
            mask = (row_ok & inside(iw0 + column, IN_W))[:, None]
            if not EVEN_K:
                mask = mask & column_ok[None, :]
            tiles = tiles + (tl.load(x_row + column * STRIDE_XW, mask=mask, other=0.0),)
        else:
            tiles = tiles + (row_ok,)  # Triton 3.8 has no tuples that hold None
    return tiles


@triton.jit
def add_row(
    tiles,
    weights,
    sums,
    KERNEL_ROW: tl.constexpr,
    FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    STRIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sums of a strip's pixels with the products of one input row added, each through the tap that reads it."""
    for column in tl.static_range(COLUMNS):
        added = ()
        for u in tl.static_range(STRIP):
            if column_tap(column, u, STRIDE_W, KERNEL_W, DILATION_W) >= 0:
                weight = weights[KERNEL_ROW * KERNEL_W + column_tap(column, u, STRIDE_W, KERNEL_W, DILATION_W)]
                added = added + (multiply_add(tiles[FIRST + column], weight, sums[u], PRECISION),)
            else:
                added = added + (sums[u],)
        sums = added
    return sums


@triton.jit
def strip_products(
    start,
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
    AHEAD: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`start` + the products of each of a strip's pixels: a tuple of STRIP tiles [BLOCK_M, BLOCK_N].

    Each input pixel of the window is read once, AHEAD rows before it is multiplied: their loads wait together.
    """
    COLUMNS: tl.constexpr = (STRIP - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1
    sums = (start,)
    for _ in tl.static_range(1, STRIP):
        sums = sums + (start,)
    tiles = ()
    for r in tl.static_range(KERNEL_H + AHEAD):
        if r < KERNEL_H:
            tiles = tiles + load_row(
                x_pointers + (r * DILATION_H) * stride_xh, inside(ih0 + r * DILATION_H, IN_H), column_ok, iw0, IN_W,
                STRIDE_XW, COLUMNS, KERNEL_W, STRIDE_W, DILATION_W, STRIP, EVEN_K,
            )  # fmt: skip
        if r >= AHEAD:
            sums = add_row(
                tiles, weights, sums, r - AHEAD, (r - AHEAD) * COLUMNS, COLUMNS, KERNEL_W, STRIDE_W, DILATION_W, STRIP,
                PRECISION,
            )  # fmt: skip
    return sums


@triton.jit
def tap_products(
    acc,
    x_pointers,
    column_ok,
    w_ptr,
    w_offsets,
    diagonal,
    taps,
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
    """`acc` + the products of one pixel per row with all `taps`, one by one; nothing stays between but the sums."""
    for tap in tl.range(0, taps, num_stages=1):
        h = (tap // KERNEL_W) * DILATION_H
        w = (tap % KERNEL_W) * DILATION_W
        mask = (inside(ih0 + h, IN_H) & inside(iw0 + w, IN_W))[:, None] & column_ok[None, :]
        a = tl.load(x_pointers + (h * stride_xh + w * STRIDE_XW), mask=mask, other=0.0)
        acc = multiply_add(a, weight_tile(w_ptr, w_offsets, diagonal, tap, C_PER_GROUP), acc, PRECISION)
    return acc


@triton.jit
def first_strips(program, OUT_H, strips_w, tiles_each, BLOCK_M: tl.constexpr, WIDE_M: tl.constexpr, zero=0):
    """(image, output row, strip of that row) of the rows of a program's first tile, [BLOCK_M] each."""
    if WIDE_M:
        strip = program.to(tl.int64) * (tiles_each * BLOCK_M) + (tl.arange(0, BLOCK_M) + zero)
    else:
        strip = program * (tiles_each * BLOCK_M) + (tl.arange(0, BLOCK_M) + zero)
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


@triton.jit
def per_channel(ptr, channel, channel_ok):
    """A vector of the output channels in fp32, [BLOCK_N]."""
    return tl.load(ptr + channel, mask=channel_ok, other=0.0).to(tl.float32)


@triton.jit
def first_sums(bias, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What the products are added to: the bias, or zero where a scale comes between."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if bias is not None and scale is None:
        sums += bias[None, :]
    return sums


@triton.jit
def finish_pixels(
    acc,
    scale,
    bias,
    residual_ptr,
    pre_ptr,
    y_ptr,
    r_rows,
    y_rows,
    channel,
    stored,
    row_ok,
    channel_ok,
    stride_yc,
    stride_rc,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The epilogue of one pixel per row: sums that hold the bias already unless there is a scale, to the stores."""
    if scale is not None:
        acc = acc * scale[None, :]
        if bias is not None:
            acc = acc + bias[None, :]
    if residual_ptr is not None:
        residual = residual_ptr + (r_rows[:, None] + (channel * stride_rc)[None, :])
        acc += tl.load(residual, mask=row_ok[:, None] & channel_ok[None, :], other=0.0).to(tl.float32)
    if pre_ptr is not None:
        store_tile(pre_ptr, acc, y_rows, channel, stride_yc, row_ok, channel_ok, VECTOR)
    acc = activate(acc, ACTIVATION, NEGATIVE_SLOPE)
    store_tile(y_ptr, acc, y_rows, stored, stride_yc, row_ok, channel_ok, VECTOR)
