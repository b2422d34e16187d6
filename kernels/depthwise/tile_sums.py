"""The sums of one register tile: which taps an input position serves, vectors of weights, products.

A register tile is TILE_H x TILE_W outputs of one thread in each of its channels, for MULTIPLIERS output channels per
input channel: a tuple of [BLOCK_P, BLOCK_C] tensors, index (m * TILE_H + u) * TILE_W + v.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.index import inside


@triton.constexpr_function
def tap_of(position, output, stride, dilation, kernel):
    """The kernel row (or column) that output `output` of a tile takes from input `position`; -1 for none."""
    distance = position - output * stride
    return distance // dilation if 0 <= distance < dilation * kernel and distance % dilation == 0 else -1


@triton.constexpr_function
def is_read(position, outputs, stride, dilation, kernel):
    """Does any of a tile's `outputs` take anything from input `position`?"""
    return any(tap_of(position, output, stride, dilation, kernel) >= 0 for output in range(outputs))


@triton.constexpr_function
def weight_index(
    t, row, column, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H, TILE_W
):
    """Which loaded weight multiplies the input at (row, column) of the tile's window in sum `t`; -1 for none."""
    tap_h = tap_of(row, t // TILE_W % TILE_H, STRIDE_H, DILATION_H, KERNEL_H)
    tap_w = tap_of(column, t % TILE_W, STRIDE_W, DILATION_W, KERNEL_W)
    if tap_h < 0 or tap_w < 0:
        return -1
    return (tap_h * KERNEL_W + tap_w) * MULTIPLIERS + t // (TILE_H * TILE_W)


@triton.jit
def load_vector(ptrs, ok, MASKED: tl.constexpr):
    """[BLOCK_P, BLOCK_C] in fp32; zeros outside when MASKED."""
    if MASKED:
        return tl.load(ptrs, mask=ok, other=0.0).to(tl.float32)
    else:
        return tl.load(ptrs).to(tl.float32)


@triton.jit
def load_taps(
    w, w_base, c_ok, stride_wm, stride_ws, step: tl.constexpr, EVEN_C: tl.constexpr, MULTIPLIERS: tl.constexpr
):
    """`w` with the weights of one more tap, one per multiplier; `w_base` points at the first of the kernel row."""
    for m in tl.static_range(MULTIPLIERS):
        w = w + (load_vector(w_base + (m * stride_wm + step * stride_ws), c_ok, not EVEN_C),)
    return w


@triton.jit
def load_all_taps(
    w_base,
    c_ok,
    stride_wm,
    stride_wr,
    stride_ws,
    EVEN_C: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
):
    """Every weight of this program's channels, index tap * MULTIPLIERS + m."""
    w = ()
    for tap in tl.static_range(KERNEL_H * KERNEL_W):
        row = w_base + (tap // KERNEL_W) * stride_wr
        w = load_taps(w, row, c_ok, stride_wm, stride_ws, tap % KERNEL_W, EVEN_C, MULTIPLIERS)
    return w


@triton.jit
def add_product(acc, x, w, INDEX: tl.constexpr):
    """Acc + x * w[INDEX]; acc as it is for a negative index."""
    if INDEX >= 0:
        acc = acc + x * w[INDEX]
    return acc


@triton.jit
def multiply_add(
    acc,
    x,
    w,
    row: tl.constexpr,
    column: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Add the input at (row, column) of the tile's window, times its weight, to every sum that takes it."""
    added = ()
    for t in tl.static_range(MULTIPLIERS * TILE_H * TILE_W):
        total = add_product(
            acc[t], x, w, weight_index(
                t, row, column, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H,
                TILE_W,
            ),
        )  # fmt: skip
        added = added + (total,)
    return added


@triton.jit
def unrolled_sums(
    acc,
    w,
    x_base,
    w_base,
    ih0,
    iw0,
    c_ok,
    IN_H,
    IN_W,
    stride_xh,
    stride_xw,
    stride_wm,
    stride_wr,
    stride_ws,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EVEN_C: tl.constexpr,
    RESIDENT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Each input of the tile's window is loaded once and serves all sums; a weight is loaded where it is first used."""
    for i in tl.static_range((TILE_H - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1):
        if is_read(i, TILE_H, STRIDE_H, DILATION_H, KERNEL_H):
            row_ok = inside(ih0 + i, IN_H)
            x_row = x_base + i * stride_xh
            for j in tl.static_range((TILE_W - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1):
                if is_read(j, TILE_W, STRIDE_W, DILATION_W, KERNEL_W):
                    if not RESIDENT and is_read(i, 1, STRIDE_H, DILATION_H, KERNEL_H):
                        if is_read(j, 1, STRIDE_W, DILATION_W, KERNEL_W):  # the tile's first output takes it: new
                            w_row = w_base + (i // DILATION_H) * stride_wr
                            w = load_taps(w, w_row, c_ok, stride_wm, stride_ws, j // DILATION_W, EVEN_C, MULTIPLIERS)
                    ok = row_ok & inside(iw0 + j, IN_W) if EVEN_C else row_ok & inside(iw0 + j, IN_W) & c_ok
                    x = load_vector(x_row + j * stride_xw, ok if MASKED else c_ok, MASKED or not EVEN_C)
                    acc = multiply_add(
                        acc, x, w, i, j, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS,
                        TILE_H, TILE_W,
                    )  # fmt: skip
    return acc


@triton.jit
def row_sums(
    acc,
    x_row,
    w_row,
    ih,
    iw0,
    c_ok,
    IN_H,
    IN_W,
    stride_xh,
    stride_xw,
    stride_wm,
    stride_ws,
    TAPS: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EVEN_C: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the products of TAPS neighbouring columns of one kernel row; rows of the window are not shared."""
    w = ()
    for j in tl.static_range((TILE_W - 1) * STRIDE_W + (TAPS - 1) * DILATION_W + 1):
        if is_read(j, TILE_W, STRIDE_W, DILATION_W, TAPS):
            if is_read(j, 1, STRIDE_W, DILATION_W, TAPS):  # the tile's first output takes it: new
                w = load_taps(w, w_row, c_ok, stride_wm, stride_ws, j // DILATION_W, EVEN_C, MULTIPLIERS)
            column_ok = inside(iw0 + j, IN_W) if EVEN_C else inside(iw0 + j, IN_W) & c_ok
            for u in tl.static_range(TILE_H):
                ok = column_ok & inside(ih + u * STRIDE_H, IN_H)
                x_ptrs = x_row + u * STRIDE_H * stride_xh + j * stride_xw
                x = load_vector(x_ptrs, ok if MASKED else c_ok, MASKED or not EVEN_C)
                acc = multiply_add(
                    acc, x, w, u, j, 1, TAPS, 1, STRIDE_W, 1, DILATION_W, MULTIPLIERS, TILE_H, TILE_W
                )  # fmt: skip
    return acc


@triton.jit
def looped_sums(
    acc,
    x_base,
    w_base,
    ih0,
    iw0,
    c_ok,
    IN_H,
    IN_W,
    kernel_rows,
    chunks,
    stride_xh,
    stride_xw,
    stride_wm,
    stride_wr,
    stride_ws,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN_C: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The same with loops over kernel rows and over whole CHUNKs of columns, the rest of the columns after them."""
    for kernel_h in tl.range(kernel_rows):
        x_row = x_base + kernel_h * DILATION_H * stride_xh
        w_row = w_base + kernel_h * stride_wr
        ih = ih0 + kernel_h * DILATION_H
        if CHUNK < KERNEL_W:
            for chunk in tl.range(chunks):
                acc = row_sums(
                    acc, x_row + chunk * (CHUNK * DILATION_W) * stride_xw, w_row + chunk * CHUNK * stride_ws, ih, iw0 +
                    chunk * (CHUNK * DILATION_W), c_ok, IN_H, IN_W, stride_xh, stride_xw, stride_wm, stride_ws, CHUNK,
                    STRIDE_H, STRIDE_W, DILATION_W, MULTIPLIERS, TILE_H, TILE_W, EVEN_C, MASKED,
                )  # fmt: skip
        REST: tl.constexpr = KERNEL_W % CHUNK if CHUNK < KERNEL_W else KERNEL_W
        FIRST: tl.constexpr = KERNEL_W - REST
        if REST > 0:
            acc = row_sums(
                acc, x_row + FIRST * DILATION_W * stride_xw, w_row + FIRST * stride_ws, ih, iw0 + FIRST * DILATION_W,
                c_ok, IN_H, IN_W, stride_xh, stride_xw, stride_wm, stride_ws, REST, STRIDE_H, STRIDE_W, DILATION_W,
                MULTIPLIERS, TILE_H, TILE_W, EVEN_C, MASKED,
            )  # fmt: skip
    return acc


@triton.jit
def window_sums(
    acc,
    w,
    x_base,
    w_base,
    ih0,
    iw0,
    c_ok,
    IN_H,
    IN_W,
    kernel_rows,
    chunks,
    stride_xh,
    stride_xw,
    stride_wm,
    stride_wr,
    stride_ws,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN_C: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROW_LOOP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the products of every input of the tile's window, with bounds checked where MASKED."""
    if ROW_LOOP:
        return looped_sums(
            acc, x_base, w_base, ih0, iw0, c_ok, IN_H, IN_W, kernel_rows, chunks, stride_xh, stride_xw, stride_wm,
            stride_wr, stride_ws, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H, TILE_W,
            CHUNK, EVEN_C, MASKED,
        )  # fmt: skip
    else:
        return unrolled_sums(
            acc, w, x_base, w_base, ih0, iw0, c_ok, IN_H, IN_W, stride_xh, stride_xw, stride_wm, stride_wr, stride_ws,
            KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H, TILE_W, EVEN_C,
            RESIDENT, MASKED,
        )  # fmt: skip


@triton.jit
def tile_sums(
    w,
    bias,
    x_base,
    w_base,
    ih0,
    iw0,
    c_ok,
    inner,
    IN_H,
    IN_W,
    kernel_rows,
    chunks,
    stride_xh,
    stride_xw,
    stride_wm,
    stride_wr,
    stride_ws,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN_C: tl.constexpr,
    ROW_LOOP: tl.constexpr,
    RESIDENT: tl.constexpr,
    INTERIOR: tl.constexpr,
    FROM_BIAS: tl.constexpr,
):
    """The sums of one register tile, begun with the bias where nothing scales them; INTERIOR branches per block."""
    acc = ()
    for t in tl.static_range(MULTIPLIERS * TILE_H * TILE_W):
        acc = acc + (bias[t // (TILE_H * TILE_W)] if FROM_BIAS else tl.zeros_like(bias[0]),)
    if INTERIOR:
        if inner:
            acc = window_sums(
                acc, w, x_base, w_base, ih0, iw0, c_ok, IN_H, IN_W, kernel_rows, chunks, stride_xh, stride_xw,
                stride_wm, stride_wr, stride_ws, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
                MULTIPLIERS, TILE_H, TILE_W, CHUNK, EVEN_C, RESIDENT, ROW_LOOP, False,
            )  # fmt: skip
        else:
            acc = window_sums(
                acc, w, x_base, w_base, ih0, iw0, c_ok, IN_H, IN_W, kernel_rows, chunks, stride_xh, stride_xw,
                stride_wm, stride_wr, stride_ws, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W,
                MULTIPLIERS, TILE_H, TILE_W, CHUNK, EVEN_C, RESIDENT, ROW_LOOP, True,
            )  # fmt: skip
    else:
        acc = window_sums(
            acc, w, x_base, w_base, ih0, iw0, c_ok, IN_H, IN_W, kernel_rows, chunks, stride_xh, stride_xw, stride_wm,
            stride_wr, stride_ws, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H,
            TILE_W, CHUNK, EVEN_C, RESIDENT, ROW_LOOP, True,
        )  # fmt: skip
    return acc
