"""Local response normalisation and max-pooling (with ReLU) in one pass over channels_last memory; no tensor cores.

One thread owns VEC neighbouring channels of a strip of STRIP pooled columns and walks down the input rows of `rows`
pooled rows. It loads and normalises each input pixel of its walk once: columns that windows of the strip share stay in
registers, and so do the maxima of the last rows, one for each column of the strip. A pixel outside the image is
replaced by the nearest one inside, which belongs to every window that reaches the outside pixel. So padding never wins
a maximum, and loads need no mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Window
from grouped_conv.kernels.device_code.epilogue import relu
from grouped_conv.kernels.device_code.lanes import join_lanes, split_lanes, take_lanes, zero_lanes
from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig, items, vector_width, why_invalid
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem


class Lrn(NamedTuple):
    """The normalisation of one channel: DOWN channels below it and UP above it, and where it happens.

    Attributes:
        PLACE: "before" or "after" the pool, or "none".
        RELU_FIRST: ReLU precedes the normalisation.
        DOWN, UP: neighbours whose squares are summed.
        STEP_DOWN, STEP_UP: how many of them one load reads; divisors of VEC.
        ALPHA, BETA, K: `x / (K + ALPHA * sum of squares) ** BETA`.
    """

    PLACE: str
    RELU_FIRST: bool
    DOWN: int
    UP: int
    STEP_DOWN: int
    STEP_UP: int
    ALPHA: float
    BETA: float
    K: float


@triton.jit
def maximum(a, b):
    """The larger of two, NaN if either is, as torch's max_pool2d."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_lanes(ptr, offsets, mask, WIDTH: tl.constexpr):
    """WIDTH neighbouring channels of each row as fp32, a tuple of [BLOCK] tensors; zeros where `mask` is false."""
    channels = offsets[:, None] + tl.arange(0, WIDTH)[None, :]
    if mask is None:
        tile = tl.load(ptr + channels)  # [BLOCK, WIDTH]
    else:
        tile = tl.load(ptr + channels, mask=mask[:, None], other=0.0)
    return split_lanes(tile.to(tl.float32), WIDTH)


@triton.jit
def load_pixel(ptr, place, in_tower, tower, LRN: tl.constexpr, VEC: tl.constexpr):
    """DOWN + VEC + UP neighbouring channels of a pixel, zeros beyond the tower; VEC divides the tower.

    `place` counts vectors of VEC channels; `in_tower` is the vector's first channel in its tower.
    """
    offsets = place * VEC  # a product, so that the compiler sees its divisibility
    lanes = load_lanes(ptr, offsets, None, VEC)
    if LRN.DOWN > 0:
        STEPS: tl.constexpr = (LRN.DOWN + LRN.STEP_DOWN - 1) // LRN.STEP_DOWN
        for step in tl.static_range(STEPS):
            reach = (step + 1) * LRN.STEP_DOWN
            lanes = load_lanes(ptr, offsets - reach, in_tower >= reach, LRN.STEP_DOWN) + lanes
        lanes = take_lanes(lanes, STEPS * LRN.STEP_DOWN - LRN.DOWN, LRN.DOWN + VEC)
    if LRN.UP > 0:
        for step in tl.static_range((LRN.UP + LRN.STEP_UP - 1) // LRN.STEP_UP):
            start = VEC + step * LRN.STEP_UP
            inside = in_tower + (start + LRN.STEP_UP) <= tower
            lanes = lanes + load_lanes(ptr, offsets + start, inside, LRN.STEP_UP)
    return take_lanes(lanes, 0, LRN.DOWN + VEC + LRN.UP)


@triton.jit
def window_sums(lanes, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """Sums of squares of COUNT windows of SIZE lanes, at most two multiply-adds a lane and one sum a window.

    A window is the end of one block of SIZE lanes and the beginning of the next: running sums over each block from both
    sides give both parts.
    """
    LANES: tl.constexpr = COUNT + SIZE - 1
    ends = ()  # ends[i]: lane i to the end of its block
    begins = ()  # begins[i]: from the beginning of its block to lane i
    for i in tl.static_range(LANES):
        begun = lanes[i] * lanes[i] if i % SIZE == 0 else begins[i - 1] + lanes[i] * lanes[i]
        begins = begins + (begun,)
    for back in tl.static_range(LANES):
        square = lanes[LANES - 1 - back] * lanes[LANES - 1 - back]
        ended = square if back == 0 or (LANES - back) % SIZE == 0 else ends[0] + square
        ends = (ended,) + ends
    sums = ()
    for i in tl.static_range(COUNT):
        sums = sums + (ends[i] if i % SIZE == 0 else ends[i] + begins[i + SIZE - 1],)
    return sums


@triton.jit
def over_power(x, base, BETA: tl.constexpr):
    """x / base ** BETA; an infinite base makes a finite x zero."""
    if BETA == 0.75:
        root = tl.rsqrt(base)
        return x * (root * tl.sqrt(root))
    elif BETA == 0.5:
        return x * tl.rsqrt(base)
    elif BETA == 1.0:
        return x / base
    elif BETA == 0.0:
        return x
    else:
        return x * tl.exp2(-BETA * tl.log2(base))


@triton.jit
def normalise(lanes, LRN: tl.constexpr, VEC: tl.constexpr):
    """Local response normalisation of the VEC lanes in the middle."""
    if LRN.RELU_FIRST:
        lanes = relu_lanes(lanes)
    sums = window_sums(lanes, VEC, LRN.DOWN + 1 + LRN.UP)
    out = ()
    for i in tl.static_range(VEC):
        out = out + (over_power(lanes[LRN.DOWN + i], LRN.K + LRN.ALPHA * sums[i], LRN.BETA),)
    return out


@triton.jit
def relu_lanes(lanes):
    """ReLU of each lane, NaN kept."""
    out = ()
    for i in tl.static_range(len(lanes)):
        out = out + (relu(lanes[i]),)
    return out


@triton.jit
def maximum_lanes(a, b):
    """Lane by lane the larger of two."""
    out = ()
    for i in tl.static_range(len(a)):
        out = out + (maximum(a[i], b[i]),)
    return out


@triton.jit
def clamped(coordinate, SIZE):
    """The nearest coordinate inside the image."""
    return tl.minimum(tl.maximum(coordinate, 0), SIZE - 1)


@triton.jit
def lrn_pool(
    x_ptr, y_ptr,
    items, vectors, strips, chunks, rows, tower, IN_H, IN_W, OUT_H, OUT_W,
    stride_xn, stride_xh, stride_xw, stride_yn, stride_yh, stride_yw,
    WINDOW: tl.constexpr, LRN: tl.constexpr, RELU_LAST: tl.constexpr, VEC: tl.constexpr, STRIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # item: one strip of pooled columns of one image, VEC channels of it
    item = tl.program_id(0) // chunks * BLOCK + tl.arange(0, BLOCK)
    item_ok = item < items
    item = tl.minimum(item, items - 1)
    vector = item % vectors
    in_tower = vector * VEC % tower
    out_w = item // vectors % strips * STRIP
    image = (item // (vectors * strips)).to(tl.int64)
    x_image = image * stride_xn + vector
    y_strip = image * stride_yn + out_w.to(tl.int64) * stride_yw + vector

    columns = ()
    for j in tl.static_range((STRIP - 1) * WINDOW.STRIDE_W + WINDOW.KERNEL_W):
        column = clamped(out_w * WINDOW.STRIDE_W + (j - WINDOW.PAD_W), IN_W)
        columns = columns + (column.to(tl.int64) * stride_xw,)

    first = tl.program_id(0) % chunks * rows
    pooled_rows = tl.minimum(rows, OUT_H - first)
    LAST: tl.constexpr = WINDOW.KERNEL_H - 1
    NEW: tl.constexpr = min(WINDOW.STRIDE_H, WINDOW.KERNEL_H)  # rows that a window does not share with the one above
    WIDTH: tl.constexpr = STRIP * (VEC + (LRN.DOWN + LRN.UP if LRN.PLACE == "after" else 0))
    kept = zero_lanes(LAST * WIDTH, BLOCK)  # the last rows' maxima
    for step in range(pooled_rows * NEW + (WINDOW.KERNEL_H - NEW)):
        in_row = clamped(first * WINDOW.STRIDE_H + (step // NEW * WINDOW.STRIDE_H + step % NEW - WINDOW.PAD_H), IN_H)
        x_row = x_image + in_row.to(tl.int64) * stride_xh
        window = kept + row_maxima(x_ptr, x_row, columns, in_tower, tower, WINDOW, LRN, VEC, STRIP)
        kept = take_lanes(window, WIDTH, LAST * WIDTH)
        if (step >= LAST) & ((step - LAST) % NEW == 0):
            pooled = take_lanes(window, 0, WIDTH)
            for i in tl.static_range(1, WINDOW.KERNEL_H):
                pooled = maximum_lanes(pooled, take_lanes(window, i * WIDTH, WIDTH))
            y_row = y_strip + (first + (step - LAST) // NEW).to(tl.int64) * stride_yh
            finish_strip(y_ptr, y_row, stride_yw, out_w, OUT_W, item_ok, pooled, LRN, RELU_LAST, VEC, STRIP)


@triton.jit
def row_maxima(
    x_ptr, row, columns, in_tower, tower, WINDOW: tl.constexpr, LRN: tl.constexpr, VEC: tl.constexpr,
    STRIP: tl.constexpr,
):  # fmt: skip
    """Maxima of one input row over each of the strip's windows: STRIP times as many lanes as a pixel has."""
    maxima = ()
    pixels = ()
    for j in tl.static_range(len(columns)):
        pixel = load_pixel(x_ptr, row + columns[j], in_tower, tower, LRN, VEC)
        if LRN.PLACE == "before":
            pixel = normalise(pixel, LRN, VEC)
        pixels = pixels + pixel
    LANES: tl.constexpr = len(pixels) // len(columns)
    for u in tl.static_range(STRIP):
        largest = take_lanes(pixels, u * WINDOW.STRIDE_W * LANES, LANES)
        for j in tl.static_range(1, WINDOW.KERNEL_W):
            largest = maximum_lanes(largest, take_lanes(pixels, (u * WINDOW.STRIDE_W + j) * LANES, LANES))
        maxima = maxima + largest
    return maxima


@triton.jit
def finish_strip(
    y_ptr, row, stride_yw, out_w, OUT_W, item_ok, pooled, LRN: tl.constexpr, RELU_LAST: tl.constexpr,
    VEC: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """What follows the pool, and the store of one pooled row of the strip."""
    LANES: tl.constexpr = len(pooled) // STRIP
    for u in tl.static_range(STRIP):
        lanes = take_lanes(pooled, u * LANES, LANES)
        if LRN.PLACE == "after":
            lanes = normalise(lanes, LRN, VEC)
        if RELU_LAST:
            lanes = relu_lanes(lanes)
        offsets = ((row + u * stride_yw) * VEC)[:, None] + tl.arange(0, VEC)[None, :]
        mask = item_ok & (out_w + u < OUT_W)
        tl.store(y_ptr + offsets, join_lanes(lanes, VEC).to(y_ptr.dtype.element_ty), mask=mask[:, None])


def plan_lrn_pool(problem: LrnPoolProblem, config: LrnPoolConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem` with `config`, for the memory formats of `input` and `output`.

    Raises:
        ValueError: when the configuration or the memory layout cannot be run, with the reason.
    """
    x, y = operands["input"], operands["output"]
    reason = why_invalid(problem, config)
    if reason is None and problem.channels > 1 and (x.strides[1] != 1 or y.strides[1] != 1):
        reason = f"channels must be innermost in memory, but strides are {x.strides} and {y.strides}"
    if reason is not None:
        raise ValueError(f"{config} cannot run {problem}: {reason}")
    vec = vector_width(problem, x, y)
    strips, chunks, count = items(problem, config, vec)
    down, up = problem.reach
    integers = (
        Integer.of("items", count),
        Integer.of("vectors", problem.channels // vec),
        Integer.of("strips", strips),
        Integer.of("chunks", chunks),
        Integer.of("rows", config.rows),
        Integer.of("tower", problem.channels // problem.groups),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        *(
            Integer.of(f"stride_{letter}{axis}", operand.strides[index] // vec, wide=True)
            for letter, operand in (("x", x), ("y", y))
            for index, axis in ((0, "n"), (2, "h"), (3, "w"))
        ),
    )
    lrn = Lrn(
        problem.lrn_place,
        problem.relu_before_lrn,
        down,
        up,
        min(vec, triton.next_power_of_2(max(down, 1))),
        min(vec, triton.next_power_of_2(max(up, 1))),
        problem.alpha / problem.size,
        problem.beta,
        problem.k,
    )
    constants = {
        "WINDOW": Window(*problem.kernel_size, *problem.stride, *problem.padding, 1, 1),
        "LRN": lrn,
        "RELU_LAST": problem.relu_last,
        "VEC": vec,
        "STRIP": config.strip,
        "BLOCK": config.block,
    }
    buffers = (
        Buffer("x_ptr", x.buffer or "input", problem.dtype, x.alignment),
        Buffer("y_ptr", y.buffer or "output", problem.dtype, y.alignment),
    )
    programs = chunks * math.ceil(count / config.block)
    return Launch(lrn_pool, config, (programs, 1, 1), buffers, integers, constants, config.rows)
