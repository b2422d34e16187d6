"""Steps of the packed input gradient: the weights of a class's taps, and sums from only some of a pack's channels.

A class is a remainder of input rows and columns by the stride; all its pixels are reached by the same taps. The taps
are taken in reverse, so that their output rows and columns go up as those of a forward convolution do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import inside
from grouped_conv.kernels.device_code.reduction import multiply_add


@triton.jit
def class_weight(weights, row, column, WINDOW: tl.constexpr, PACK: tl.constexpr, CLASS: tl.constexpr):
    """[BLOCK_K, BLOCK_N] weights of one tap, zero off the diagonal and where the class has no such tap."""
    mask = weights.diagonal
    if not CLASS.EVEN:
        mask = mask & ((row < WINDOW.KERNEL_H) & (column < WINDOW.KERNEL_W))
    tap = weights.ptr + (row * WINDOW.KERNEL_W + column) * PACK.IN.PER_GROUP
    return tl.load(tap + weights.offsets, mask=mask, other=0.0)


@triton.jit
def class_weights(weights, first_h, first_w, WINDOW: tl.constexpr, PACK: tl.constexpr, CLASS: tl.constexpr):
    """The tiles of all taps of a class as a tuple, the last tap first."""
    MOST_H: tl.constexpr = CLASS.READ.KERNEL_H
    MOST_W: tl.constexpr = CLASS.READ.KERNEL_W
    tiles = ()
    for tap in tl.static_range(MOST_H * MOST_W):
        row = first_h + CLASS.STEP_H * (MOST_H - 1 - tap // MOST_W)
        column = first_w + CLASS.STEP_W * (MOST_W - 1 - tap % MOST_W)
        tiles = tiles + (class_weight(weights, row, column, WINDOW, PACK, CLASS),)
    return tiles


@triton.jit
def tap_offset(h, w, strides, WINDOW: tl.constexpr):
    """From a window's first pixel to the one that tap (h, w) reads."""
    return h * WINDOW.DILATION_H * strides.h + w * WINDOW.DILATION_W * strides.w


@triton.jit
def own_sums(
    source, ok, weights, first_h, first_w, taps, WINDOW: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr,
    CLASS: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The sums of one pixel per row from the output channels `ok`, tap by tap, only from taps that the class has."""
    READ: tl.constexpr = CLASS.READ
    acc = tl.zeros((TILE.BLOCK, PACK.IN.BLOCK), tl.float32)
    for tap in tl.range(0, taps, num_stages=1):
        h = tap // READ.KERNEL_W
        w = tap % READ.KERNEL_W
        row = first_h + CLASS.STEP_H * (READ.KERNEL_H - 1 - h)
        column = first_w + CLASS.STEP_W * (READ.KERNEL_W - 1 - w)
        there = (row < WINDOW.KERNEL_H) & (column < WINDOW.KERNEL_W)
        ok_h = inside(source.h0 + h * READ.DILATION_H, source.height)
        mask = (ok_h & inside(source.w0 + w * READ.DILATION_W, source.width) & there)[:, None] & ok[None, :]
        known = source.known
        if DERIVATIVE.ACTIVATION != "none":
            known = known + tap_offset(h, w, source.known_strides, READ)
        a = load_gradient(
            source.pointers + tap_offset(h, w, source.strides, READ), known, mask, source.scale, DERIVATIVE
        )
        acc = multiply_add(a, class_weight(weights, row, column, WINDOW, PACK, CLASS), acc, TILE.PRECISION)
    return acc


@triton.jit
def isolated_sums(
    source, out, into, weights, first_h, first_w, taps, WINDOW: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr,
    CLASS: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The sums of one pixel per row, each input channel from the output channels of its group only."""
    acc = tl.zeros((TILE.BLOCK, PACK.IN.BLOCK), tl.float32)
    for member in tl.range(0, PACK.IN.GROUPS, num_stages=1):
        ok = out.ok & (out.member == member)
        own = own_sums(source, ok, weights, first_h, first_w, taps, WINDOW, PACK, TILE, CLASS, DERIVATIVE)
        acc = tl.where((into.member == member)[None, :], own, acc)
    return acc
