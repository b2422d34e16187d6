"""Steps of the packed input gradient: the weights of a class's taps, the rows it reads, and the sums of its pixels.

A class is a remainder of input rows and columns by the stride; all its pixels are reached by the same taps. The taps
are taken in reverse, so that their output rows and columns go up as those of a forward convolution do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Derivative
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import OUTSIDE, inside
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.packed.sums import add_row, column_needed


@triton.jit
def class_weight(
    w_ptr,
    w_offsets,
    diagonal,
    row,
    column,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    EVEN_TAPS: tl.constexpr,
):
    """[BLOCK_K, BLOCK_N] weights of one tap, zero off the diagonal and where the class has no such tap."""
    mask = diagonal
    if not EVEN_TAPS:
        mask = mask & ((row < KERNEL_H) & (column < KERNEL_W))
    return tl.load(w_ptr + (row * KERNEL_W + column) * C_PER_GROUP + w_offsets, mask=mask, other=0.0)


@triton.jit
def class_weights(
    w_ptr,
    w_offsets,
    diagonal,
    first_h,
    first_w,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOST_H: tl.constexpr,
    MOST_W: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    EVEN_TAPS: tl.constexpr,
):
    """The tiles of all taps of a class as a tuple, the last tap first: so the output's rows and columns go up."""
    tiles = ()
    for tap in tl.static_range(MOST_H * MOST_W):
        row = first_h + STEP_H * (MOST_H - 1 - tap // MOST_W)
        column = first_w + STEP_W * (MOST_W - 1 - tap % MOST_W)
        tiles = tiles + (
            class_weight(w_ptr, w_offsets, diagonal, row, column, C_PER_GROUP, KERNEL_H, KERNEL_W, EVEN_TAPS),
        )  # fmt: skip
    return tiles


@triton.jit
def gradient_row(
    g_row,
    k_row,
    row_ok,
    column_ok,
    scale,
    ow0,
    OUT_W,
    stride_gw,
    stride_kw,
    COLUMNS: tl.constexpr,
    MOST_W: tl.constexpr,
    BACK_W: tl.constexpr,
    STRIP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """One output row of each strip's window: COLUMNS tiles [BLOCK_M, BLOCK_K], a stand-in where no tap reads."""
    tiles = ()
    for column in tl.static_range(COLUMNS):
        if column_needed(column, STRIP, 1, MOST_W, BACK_W):
            mask = (row_ok & inside(ow0 + column, OUT_W))[:, None]
            if not EVEN_K:
                mask = mask & column_ok[None, :]
            known = k_row
            if ACTIVATION != "none":
                known = k_row + column * stride_kw
            tiles = tiles + (
                load_gradient(
                    g_row + column * stride_gw, known, mask, scale, Derivative(ACTIVATION, NEGATIVE_SLOPE, 1, 1, 1)
                ),
            )  # fmt: skip
        else:
            tiles = tiles + (row_ok,)  # Triton 3.8 has no tuples that hold None
    return tiles


@triton.jit
def window_sums(
    g_pointers,
    k_pointers,
    column_ok,
    scale,
    weights,
    oh0,
    ow0,
    OUT_H,
    OUT_W,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    MOST_H: tl.constexpr,
    MOST_W: tl.constexpr,
    BACK_H: tl.constexpr,
    BACK_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STRIP: tl.constexpr,
    AHEAD: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """The sums of each of a strip's pixels: a tuple of STRIP tiles [BLOCK_M, BLOCK_N].

    Each output pixel of the window is read once, AHEAD rows before it is multiplied: their loads wait together.
    """
    COLUMNS: tl.constexpr = (STRIP - 1) + (MOST_W - 1) * BACK_W + 1
    sums = ()
    for _ in tl.static_range(STRIP):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),)
    tiles = ()
    for r in tl.static_range(MOST_H + AHEAD):
        if r < MOST_H:
            k_row = k_pointers
            if ACTIVATION != "none":
                k_row = k_pointers + (r * BACK_H) * stride_kh
            tiles = tiles + gradient_row(
                g_pointers + (r * BACK_H) * stride_gh, k_row, inside(oh0 + r * BACK_H, OUT_H), column_ok, scale, ow0,
                OUT_W, stride_gw, stride_kw, COLUMNS, MOST_W, BACK_W, STRIP, EVEN_K, ACTIVATION, NEGATIVE_SLOPE,
            )  # fmt: skip
        if r >= AHEAD:
            sums = add_row(
                tiles, weights, sums, r - AHEAD, (r - AHEAD) * COLUMNS, COLUMNS, MOST_W, 1, BACK_W, STRIP, PRECISION
            )
    return sums


@triton.jit
def window_of(image, row, column, images, back_h, back_w):
    """(first output row, first output column) of each window; rows past the last image are outside."""
    return tl.where(image < images, row + back_h, OUTSIDE), column + back_w


@triton.jit
def own_sums(
    g_pointers,
    k_pointers,
    own,
    scale,
    w_ptr,
    w_offsets,
    diagonal,
    taps,
    first_h,
    first_w,
    oh0,
    ow0,
    OUT_H,
    OUT_W,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    C_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOST_H: tl.constexpr,
    MOST_W: tl.constexpr,
    BACK_H: tl.constexpr,
    BACK_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN_TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """The sums of one pixel per row from the output channels `own`, tap by tap, only from taps that the class has."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tap in tl.range(0, taps, num_stages=1):
        h = tap // MOST_W
        w = tap % MOST_W
        row = first_h + STEP_H * (MOST_H - 1 - h)
        column = first_w + STEP_W * (MOST_W - 1 - w)
        there = (row < KERNEL_H) & (column < KERNEL_W)
        mask = (inside(oh0 + h * BACK_H, OUT_H) & inside(ow0 + w * BACK_W, OUT_W) & there)[:, None] & own[None, :]
        known = k_pointers
        if ACTIVATION != "none":
            known = k_pointers + (h * BACK_H * stride_kh + w * BACK_W * stride_kw)
        a = load_gradient(
            g_pointers + (h * BACK_H * stride_gh + w * BACK_W * stride_gw), known, mask, scale,
            Derivative(ACTIVATION, NEGATIVE_SLOPE, 1, 1, 1),
        )  # fmt: skip
        b = class_weight(w_ptr, w_offsets, diagonal, row, column, C_PER_GROUP, KERNEL_H, KERNEL_W, EVEN_TAPS)
        acc = multiply_add(a, b, acc, PRECISION)
    return acc
