"""The gradient of a depthwise convolution's weight (one input channel per group): the kernel and its launch planner.

Direct, in fp32, no `tl.dot`. A program owns a block of channels, some taps of their kernels and one part of the output.
A thread reads register tiles of the output's gradient and the inputs around them, and adds their products to one sum
per tap and channel. At the end the threads' sums are added, in a fixed order, and stored in a workspace.

The last tile of a row or column begins early enough to fit, its outputs that another tile has count as zero. So no
product is with an input that the tap never meets, and an infinity spoils no other tap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.gradient_steps import channel_bases, load_gradients
from grouped_conv.kernels.depthwise.input_grad import depthwise_constants, near_strides
from grouped_conv.kernels.depthwise.tile_sums import is_read, load_vector, tap_of
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig, walk_of
from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.device_code.index import inside, next_pixels, shuffled
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Arguments, Operand
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def tile_gradients(
    dy_ptr,
    known_ptr,
    image,
    oh0,
    ow0,
    from_h,
    from_w,
    tile_ok,
    c,
    k,
    k_ok,
    first,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    K_PER_GROUP: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SHUFFLE: tl.constexpr,
    SHUFFLE_KNOWN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
):
    """The gradients of a register tile, index (u * TILE_W + v) * MULTIPLIERS + m; zeros before (from_h, from_w)."""
    rows = pixel_offsets(image, oh0, ow0, Strides(stride_gn, 1, stride_gh, stride_gw))
    dy = channel_bases(dy_ptr, rows, c, k, first, SHUFFLE, OUT_CHANNELS, K_PER_GROUP, MULTIPLIERS, WIDE)
    known = dy
    if ACTIVATION != "none":
        rows = pixel_offsets(image, oh0, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))
        known = channel_bases(known_ptr, rows, c, k, first, SHUFFLE_KNOWN, OUT_CHANNELS, K_PER_GROUP, MULTIPLIERS, WIDE)
    loaded = ()
    for t in tl.static_range(TILE_H * TILE_W):
        ok = tile_ok & (oh0 + t // TILE_W >= from_h) & (ow0 + t % TILE_W >= from_w)
        loaded = loaded + load_gradients(
            dy, known, (t // TILE_W) * stride_gh + (t % TILE_W) * stride_gw,
            (t // TILE_W) * stride_kh + (t % TILE_W) * stride_kw, ok[:, None], k_ok, ACTIVATION, NEGATIVE_SLOPE,
            MULTIPLIERS, EVEN_C, WIDE,
        )  # fmt: skip
    return loaded


@triton.constexpr_function
def meets(t, p, row, column, ROWS, COLUMNS, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_W):
    """Does output `p` of a tile take the input at (row, column) of its window by the tap of sum `t`?"""
    tap_h = tap_of(row, p // TILE_W, STRIDE_H, DILATION_H, ROWS)
    tap_w = tap_of(column, p % TILE_W, STRIDE_W, DILATION_W, COLUMNS)
    return tap_h == t // MULTIPLIERS // COLUMNS and tap_w == t // MULTIPLIERS % COLUMNS


@triton.jit
def add_products(
    acc,
    x,
    dy,
    row: tl.constexpr,
    column: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Add the input at (row, column) of the tile's window, times the gradients of its outputs, to the taps' sums."""
    added = ()
    for t in tl.static_range(ROWS * COLUMNS * MULTIPLIERS):
        total = acc[t]
        for p in tl.static_range(TILE_H * TILE_W):
            if meets(t, p, row, column, ROWS, COLUMNS, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS, TILE_W):
                total = total + x * dy[p * MULTIPLIERS + t % MULTIPLIERS]
        added = added + (total,)
    return added


@triton.jit
def depthwise_weight_grad(
    dy_ptr,
    known_ptr,
    x_ptr,
    workspace_ptr,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    rows_each,
    columns_each,
    tiles,
    part,
    parts_h,
    parts_w,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    stride_xn,
    stride_xh,
    stride_xw,
    CHANNELS: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    WIDE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
):
    KERNEL_H: tl.constexpr = WINDOW.KERNEL_H
    KERNEL_W: tl.constexpr = WINDOW.KERNEL_W
    STRIDE_H: tl.constexpr = WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    PAD_H: tl.constexpr = WINDOW.PAD_H
    PAD_W: tl.constexpr = WINDOW.PAD_W
    DILATION_H: tl.constexpr = WINDOW.DILATION_H
    DILATION_W: tl.constexpr = WINDOW.DILATION_W
    ACTIVATION: tl.constexpr = DERIVATIVE.ACTIVATION
    NEGATIVE_SLOPE: tl.constexpr = DERIVATIVE.NEGATIVE_SLOPE
    SHUFFLE: tl.constexpr = DERIVATIVE.SHUFFLE
    SHUFFLE_KNOWN: tl.constexpr = DERIVATIVE.SHUFFLE_KNOWN
    OUT_CHANNELS: tl.constexpr = DERIVATIVE.OUT_CHANNELS
    TILES_C: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    EVEN_C: tl.constexpr = CHANNELS % BLOCK_C == 0
    pid = tl.program_id(0)
    pid_c = pid % TILES_C
    outer = pid // TILES_C
    first_s = outer % parts_w * COLUMNS
    first_r = outer // parts_w % parts_h * ROWS
    outer = outer // parts_w // parts_h
    first = outer % (K_PER_GROUP // MULTIPLIERS) * MULTIPLIERS
    split = outer // (K_PER_GROUP // MULTIPLIERS)

    c = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = (c < CHANNELS)[None, :]
    k = pid_c * (BLOCK_C * K_PER_GROUP) + tl.arange(0, BLOCK_C * MULTIPLIERS if WIDE else BLOCK_C)
    k_ok = (k < CHANNELS * K_PER_GROUP)[None, :] if WIDE else c_ok
    in_channel = c
    if INPUT_SHUFFLE > 1:  # a shuffle in C / s groups undoes one in s
        in_channel = shuffled(c, CHANNELS // INPUT_SHUFFLE, CHANNELS)
    down = first_r * DILATION_H - PAD_H
    right = first_s * DILATION_W - PAD_W

    begin = split * part
    end = tl.minimum(begin + part, tiles)
    lane = tl.arange(0, BLOCK_P)
    tile = begin + lane
    image = tile // columns_each // rows_each
    tile_h = tile // columns_each % rows_each
    tile_w = tile % columns_each
    over_n = BLOCK_P // columns_each // rows_each
    over_h = BLOCK_P // columns_each % rows_each
    over_w = BLOCK_P % columns_each
    acc = ()
    for _ in tl.static_range(ROWS * COLUMNS * MULTIPLIERS):
        acc = acc + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for step in tl.range(begin, end, BLOCK_P):
        tile_ok = step + lane < end
        from_h = tile_h * TILE_H
        from_w = tile_w * TILE_W
        oh0 = tl.minimum(from_h, OUT_H - TILE_H)
        ow0 = tl.minimum(from_w, OUT_W - TILE_W)
        dy = tile_gradients(
            dy_ptr, known_ptr, image, oh0, ow0, from_h, from_w, tile_ok, c, k, k_ok, first, stride_gn, stride_gh,
            stride_gw, stride_kn, stride_kh, stride_kw, K_PER_GROUP, MULTIPLIERS, TILE_H, TILE_W, EVEN_C, WIDE,
            ACTIVATION, NEGATIVE_SLOPE, SHUFFLE, SHUFFLE_KNOWN, OUT_CHANNELS,
        )  # fmt: skip
        ih0 = oh0 * STRIDE_H + down
        iw0 = ow0 * STRIDE_W + right
        x_base = x_ptr + (
            pixel_offsets(image, ih0, iw0, Strides(stride_xn, 1, stride_xh, stride_xw))[:, None] + in_channel[None, :]
        )
        for i in tl.static_range((TILE_H - 1) * STRIDE_H + (ROWS - 1) * DILATION_H + 1):
            if is_read(i, TILE_H, STRIDE_H, DILATION_H, ROWS):
                row_ok = tile_ok & inside(ih0 + i, IN_H)
                for j in tl.static_range((TILE_W - 1) * STRIDE_W + (COLUMNS - 1) * DILATION_W + 1):
                    if is_read(j, TILE_W, STRIDE_W, DILATION_W, COLUMNS):
                        ok = (row_ok & inside(iw0 + j, IN_W))[:, None]
                        x_ptrs = x_base + (i * stride_xh + j * stride_xw)
                        x = load_vector(x_ptrs, ok if EVEN_C else ok & c_ok, True)
                        acc = add_products(
                            acc, x, dy, i, j, ROWS, COLUMNS, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIERS,
                            TILE_H, TILE_W,
                        )  # fmt: skip
        image, tile_h, tile_w = next_pixels(image, tile_h, tile_w, over_n, over_h, over_w, rows_each, columns_each)

    target = workspace_ptr + tl.cast(split, tl.int64) * (CHANNELS * K_PER_GROUP * KERNEL_H * KERNEL_W)
    for t in tl.static_range(ROWS * COLUMNS * MULTIPLIERS):
        r = first_r + t // MULTIPLIERS // COLUMNS
        s = first_s + t // MULTIPLIERS % COLUMNS
        channel = (c * K_PER_GROUP + (first + t % MULTIPLIERS)).to(tl.int64)
        place = channel * (KERNEL_H * KERNEL_W) + (r * KERNEL_W + s)
        tl.store(target + place, tl.sum(acc[t], axis=0), mask=(c < CHANNELS) & (r < KERNEL_H) & (s < KERNEL_W))


def plan_depthwise_weight_grad(
    problem: ConvProblem, config: DepthwiseWeightGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch that leaves partial sums in `workspace`, `[splits, K, R, S, 1]` in fp32."""
    x = operands["input"]
    walk = walk_of(problem, config)
    tile = (config.tile_h, config.tile_w)
    windows = [
        d * k + s * t for d, k, s, t in zip(problem.dilation, problem.kernel_size, problem.stride, tile, strict=True)
    ]
    loading = near_strides(gradient_arguments(problem, operands), windows)
    reading = near_strides(
        Arguments(
            integers=tuple(
                Integer.of(f"stride_x{axis}", x.strides[index], wide=True, stride=True)
                for index, axis in ((0, "n"), (2, "h"), (3, "w"))
            )
        ),
        windows,
    )
    integers = (
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        *(
            Integer.of(name, getattr(walk, name))
            for name in ("rows_each", "columns_each", "tiles", "part", "parts_h", "parts_w")
        ),
        *loading.integers,
        *reading.integers,
    )
    constants: dict[str, Any] = {
        **depthwise_constants(problem),
        "ROWS": walk.rows,
        "COLUMNS": walk.columns,
        "TILE_H": config.tile_h,
        "TILE_W": config.tile_w,
        "BLOCK_P": config.block_p,
        "BLOCK_C": config.block_c,
        "MULTIPLIERS": config.multipliers,
        "WIDE": config.multipliers == problem.k_per_group and config.multipliers in (1, 2, 4),
        **loading.constants,
        **reading.constants,
    }
    buffers = (
        *loading.buffers,
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("workspace_ptr", "workspace", "float32"),
    )
    trips = math.ceil(walk.part / config.block_p)
    return Launch(depthwise_weight_grad, config, (walk.programs, 1, 1), buffers, integers, constants, trips)
