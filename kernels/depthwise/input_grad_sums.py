"""The sums of a register tile of input gradients: which gradients meet which weights, unrolled or in loops."""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.gradient_steps import (
    channel_bases,
    first_place,
    is_first_use,
    is_reached,
    load_gradients,
    place_count,
    reached_tap,
    with_tap,
)
from grouped_conv.kernels.depthwise.tile_blocks import channel_vectors
from grouped_conv.kernels.device_code.index import inside


@triton.constexpr_function
def weight_index(
    t, row, column, ROWS, COLUMNS, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_W
):
    """The first of the weights that multiply the gradient at (row, column) for pixel `t` of a tile; -1 for none."""
    tap_h = reached_tap(row, t // TILE_W, ROWS, STRIDE_H, PAD_H, DILATION_H)
    tap_w = reached_tap(column, t % TILE_W, COLUMNS, STRIDE_W, PAD_W, DILATION_W)
    return -1 if tap_h < 0 or tap_w < 0 else (tap_h * COLUMNS + tap_w) * MULTIPLIERS


@triton.jit
def add_multipliers(total, dy, w, INDEX: tl.constexpr, MULTIPLIERS: tl.constexpr):
    """Total + the products of all multipliers, whose weights begin at INDEX; total as it is for a negative index."""
    if INDEX >= 0:
        for m in tl.static_range(MULTIPLIERS):
            total = total + dy[m] * w[INDEX + m]
    return total


@triton.jit
def place_products(
    acc,
    w,
    dy,
    known,
    w_base,
    scale,
    ok,
    c_ok,
    k_ok,
    g_start,
    k_start,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    stride_wm,
    stride_wr,
    stride_ws,
    row: tl.constexpr,
    column: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """(sums, weights) after the gradient at one place of the window: new weights, one load, all its products."""
    for r in tl.static_range(ROWS):
        if is_first_use(row, r, TILE_H, STRIDE_H, PAD_H, DILATION_H):
            for s in tl.static_range(COLUMNS):
                if is_first_use(column, s, TILE_W, STRIDE_W, PAD_W, DILATION_W):
                    w = with_tap(
                        w, w_base, scale, c_ok, stride_wm, r * stride_wr + s * stride_ws, r * COLUMNS + s,
                        ROWS * COLUMNS, MULTIPLIERS, EVEN_C, SCALED,
                    )  # fmt: skip
    grad = load_gradients(
        dy, known, g_start + (row * stride_gh + column * stride_gw), k_start + (row * stride_kh + column * stride_kw),
        ok, k_ok, ACTIVATION, NEGATIVE_SLOPE, MULTIPLIERS, EVEN_C, WIDE,
    )  # fmt: skip
    added = ()
    for t in tl.static_range(TILE_H * TILE_W):
        total = add_multipliers(
            acc[t], grad, w, weight_index(
                t, row, column, ROWS, COLUMNS, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, MULTIPLIERS,
                TILE_W,
            ), MULTIPLIERS,
        )  # fmt: skip
        added = added + (total,)
    return added, w


@triton.jit
def window_products(
    acc,
    dy,
    known,
    w_base,
    scale,
    oh0,
    ow0,
    OUT_H,
    OUT_W,
    c_ok,
    k_ok,
    g_start,
    k_start,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    stride_wm,
    stride_wr,
    stride_ws,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """Each gradient of the window is loaded once and serves all pixels; a weight is loaded where it is first used."""
    w = ()
    for _ in tl.static_range(ROWS * COLUMNS * MULTIPLIERS):
        w = w + (acc[0],)  # overwritten before it is read
    for i in tl.static_range(place_count(TILE_H, ROWS, STRIDE_H, PAD_H, DILATION_H)):
        if is_reached(i + first_place(ROWS, STRIDE_H, PAD_H, DILATION_H), TILE_H, ROWS, STRIDE_H, PAD_H, DILATION_H):
            row_ok = inside(oh0 + (i + first_place(ROWS, STRIDE_H, PAD_H, DILATION_H)), OUT_H)
            for j in tl.static_range(place_count(TILE_W, COLUMNS, STRIDE_W, PAD_W, DILATION_W)):
                if is_reached(
                    j + first_place(COLUMNS, STRIDE_W, PAD_W, DILATION_W), TILE_W, COLUMNS, STRIDE_W, PAD_W, DILATION_W
                ):
                    ok = row_ok & inside(ow0 + (j + first_place(COLUMNS, STRIDE_W, PAD_W, DILATION_W)), OUT_W)
                    acc, w = place_products(
                        acc, w, dy, known, w_base, scale, ok, c_ok, k_ok, g_start, k_start, stride_gh, stride_gw,
                        stride_kh, stride_kw, stride_wm, stride_wr, stride_ws,
                        i + first_place(ROWS, STRIDE_H, PAD_H, DILATION_H),
                        j + first_place(COLUMNS, STRIDE_W, PAD_W, DILATION_W), ROWS, COLUMNS, STRIDE_H, STRIDE_W,
                        PAD_H, PAD_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H, TILE_W, EVEN_C, WIDE, SCALED,
                        ACTIVATION, NEGATIVE_SLOPE,
                    )  # fmt: skip
    return acc


@triton.jit
def looped_products(
    acc,
    dy,
    known,
    w_base,
    scale,
    oh0,
    ow0,
    OUT_H,
    OUT_W,
    c_ok,
    k_ok,
    first_h,
    count_h,
    chunks,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    stride_wm,
    stride_wr,
    stride_ws,
    KERNEL_W: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr,
    BACK_H: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """The same with loops over a class's kernel rows and over whole CHUNKs of columns, the rest after them."""
    BACK_W: tl.constexpr = CHUNK * DILATION_W // STRIDE_W  # output columns from one chunk to the next
    REST: tl.constexpr = KERNEL_W % CHUNK if CHUNK < KERNEL_W else KERNEL_W
    BEFORE: tl.constexpr = (KERNEL_W - REST) // CHUNK
    for q in tl.range(count_h):
        oh = oh0 - q * BACK_H
        w_row = w_base + (first_h + q * STEP_H) * stride_wr
        g_row = -q * BACK_H * stride_gh
        k_row = -q * BACK_H * stride_kh
        if CHUNK < KERNEL_W:
            for chunk in tl.range(chunks):
                acc = window_products(
                    acc, dy, known, w_row + chunk * CHUNK * stride_ws, scale, oh, ow0 - chunk * BACK_W, OUT_H, OUT_W,
                    c_ok, k_ok, g_row - chunk * BACK_W * stride_gw, k_row - chunk * BACK_W * stride_kw, stride_gh,
                    stride_gw, stride_kh, stride_kw, stride_wm, stride_wr, stride_ws, 1, CHUNK, 1, STRIDE_W, 0, PAD_W,
                    1, DILATION_W, MULTIPLIERS, TILE_H, TILE_W, EVEN_C, WIDE, SCALED, ACTIVATION, NEGATIVE_SLOPE,
                )  # fmt: skip
        if REST > 0:
            acc = window_products(
                acc, dy, known, w_row + BEFORE * CHUNK * stride_ws, scale, oh, ow0 - BEFORE * BACK_W, OUT_H, OUT_W,
                c_ok, k_ok, g_row - BEFORE * BACK_W * stride_gw, k_row - BEFORE * BACK_W * stride_kw, stride_gh,
                stride_gw, stride_kh, stride_kw, stride_wm, stride_wr, stride_ws, 1, REST, 1, STRIDE_W, 0, PAD_W, 1,
                DILATION_W, MULTIPLIERS, TILE_H, TILE_W, EVEN_C, WIDE, SCALED, ACTIVATION, NEGATIVE_SLOPE,
            )  # fmt: skip
    return acc


@triton.jit
def part_products(
    acc,
    first,
    dy_ptr,
    known_ptr,
    scale_ptr,
    w_ptr,
    g_rows,
    k_rows,
    c,
    k,
    lanes,
    oh0,
    ow0,
    OUT_H,
    OUT_W,
    c_ok,
    k_ok,
    first_h,
    count_h,
    chunks,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    stride_wm,
    stride_wr,
    stride_ws,
    stride_wc,
    K_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    CHUNK: tl.constexpr,
    ROW_LOOP: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SHUFFLE: tl.constexpr,
    SHUFFLE_KNOWN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
):
    """The sums with the products of MULTIPLIERS output channels per input channel, from `first` on."""
    SCALED: tl.constexpr = scale_ptr is not None
    dy = channel_bases(dy_ptr, g_rows, c, k, first, SHUFFLE, OUT_CHANNELS, K_PER_GROUP, MULTIPLIERS, WIDE)
    known = dy
    if ACTIVATION != "none":
        known = channel_bases(
            known_ptr, k_rows, c, k, first, SHUFFLE_KNOWN, OUT_CHANNELS, K_PER_GROUP, MULTIPLIERS, WIDE
        )
    scale = channel_vectors(scale_ptr, (c * K_PER_GROUP + first)[None, :] + lanes, c_ok, EVEN_C, MULTIPLIERS, 1.0)
    w_base = w_ptr + ((c.to(tl.int64) * stride_wc + tl.cast(first, tl.int64) * stride_wm)[None, :] + lanes)
    if ROW_LOOP:
        acc = looped_products(
            acc, dy, known, w_base, scale, oh0, ow0, OUT_H, OUT_W, c_ok, k_ok, first_h, count_h, chunks,
            stride_gh, stride_gw, stride_kh, stride_kw, stride_wm, stride_wr, stride_ws, KERNEL_W, STRIDE_W, PAD_W,
            DILATION_W, STEP_H, DILATION_H * STEP_H // STRIDE_H, MULTIPLIERS, TILE_H, TILE_W, CHUNK, EVEN_C, WIDE,
            SCALED, ACTIVATION, NEGATIVE_SLOPE,
        )  # fmt: skip
    else:
        acc = window_products(
            acc, dy, known, w_base, scale, oh0, ow0, OUT_H, OUT_W, c_ok, k_ok, 0, 0, stride_gh, stride_gw,
            stride_kh, stride_kw, stride_wm, stride_wr, stride_ws, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H,
            PAD_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_H, TILE_W, EVEN_C, WIDE, SCALED, ACTIVATION,
            NEGATIVE_SLOPE,
        )  # fmt: skip
    return acc
