"""The gradient of a depthwise convolution's weight (one input channel per group): the kernel and its launch planner.

Direct, in fp32, no `tl.dot`. A program owns a block of channels, some taps of their kernels and one part of the output.
A thread reads register tiles of the output's gradient and the inputs around them, and adds their products to one sum
per tap and channel. At the end the threads' sums are added, in a fixed order, and stored in a workspace.

The last tile of a row or column begins early enough to fit into the image; outputs that the tile before it also has
count as zero. So a tap is never multiplied by an input that it does not meet, and an infinity spoils no other tap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.bundles import Gradients, Patch, Pixels, plain
from grouped_conv.kernels.depthwise.gradient_steps import channel_bases, load_gradients, share_of
from grouped_conv.kernels.depthwise.input_grad import gradient_constants, near_strides
from grouped_conv.kernels.depthwise.tile_sums import is_read, load_vector, span, tap_of
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
    gradients, pixels, from_h, from_w, share, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The gradients of a register tile, index (u * TILE_W + v) * MULTIPLIERS + m; zeros before (from_h, from_w)."""
    g_rows = pixel_offsets(pixels.image, pixels.h, pixels.w, gradients.g)
    dy = channel_bases(gradients.dy, g_rows, share, first, DERIVATIVE.SHUFFLE, DERIVATIVE.OUT_CHANNELS, CHANNELS)
    known = dy
    if DERIVATIVE.ACTIVATION != "none":
        k_rows = pixel_offsets(pixels.image, pixels.h, pixels.w, gradients.k)
        known = channel_bases(
            gradients.known, k_rows, share, first, DERIVATIVE.SHUFFLE_KNOWN, DERIVATIVE.OUT_CHANNELS, CHANNELS
        )
    loaded = ()
    for t in tl.static_range(ROWS.TILE * COLUMNS.TILE):
        ok = pixels.ok & (pixels.h + t // COLUMNS.TILE >= from_h) & (pixels.w + t % COLUMNS.TILE >= from_w)
        g_offset = (t // COLUMNS.TILE) * gradients.g.h + (t % COLUMNS.TILE) * gradients.g.w
        k_offset = (t // COLUMNS.TILE) * gradients.k.h + (t % COLUMNS.TILE) * gradients.k.w
        loaded = loaded + load_gradients(dy, known, g_offset, k_offset, ok[:, None], share.k_ok, CHANNELS, DERIVATIVE)
    return loaded


@triton.constexpr_function
def meets(t, p, row, column, rows, columns, multipliers):
    """Does output `p` of a tile take the input at (row, column) of its window by the tap of sum `t`?"""
    across = plain(columns)
    taps = (tap_of(row, p // across.TILE, rows), tap_of(column, p % across.TILE, columns))
    return taps == divmod(t // multipliers, across.TAPS)


@triton.jit
def add_products(
    acc, x, dy, row: tl.constexpr, column: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the input at (row, column) of the tile's window, times the gradients of its outputs, to the taps' sums."""
    added = ()
    for t in tl.static_range(ROWS.TAPS * COLUMNS.TAPS * CHANNELS.MULTIPLIERS):
        total = acc[t]
        for p in tl.static_range(ROWS.TILE * COLUMNS.TILE):
            if meets(t, p, row, column, ROWS, COLUMNS, CHANNELS.MULTIPLIERS):
                total = total + x * dy[p * CHANNELS.MULTIPLIERS + t % CHANNELS.MULTIPLIERS]
        added = added + (total,)
    return added


@triton.jit
def add_window(
    acc, dy, patch, tile_ok, c_ok, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Add the products of every input of the tile's window, each loaded once; the patch's coordinates are [BLOCK_P]."""
    for i in tl.static_range(span(ROWS)):
        if is_read(i, ROWS):
            row_ok = tile_ok & inside(patch.h + i, patch.height)
            for j in tl.static_range(span(COLUMNS)):
                if is_read(j, COLUMNS):
                    ok = (row_ok & inside(patch.w + j, patch.width))[:, None]
                    x_ptrs = patch.base + (i * patch.stride_h + j * patch.stride_w)
                    x = load_vector(x_ptrs, ok if CHANNELS.EVEN else ok & c_ok, True)
                    acc = add_products(acc, x, dy, i, j, ROWS, COLUMNS, CHANNELS)
    return acc


@triton.jit
def store_sums(
    target, acc, c, first, first_r, first_s, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, IN_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the threads' sums and store them in [K, KERNEL_H, KERNEL_W]; a program's last taps may not exist."""
    for t in tl.static_range(ROWS.TAPS * COLUMNS.TAPS * CHANNELS.MULTIPLIERS):
        r = first_r + t // CHANNELS.MULTIPLIERS // COLUMNS.TAPS
        s = first_s + t // CHANNELS.MULTIPLIERS % COLUMNS.TAPS
        channel = (c * CHANNELS.PER_GROUP + (first + t % CHANNELS.MULTIPLIERS)).to(tl.int64)
        place = channel * (KERNEL_H * KERNEL_W) + (r * KERNEL_W + s)
        tl.store(target + place, tl.sum(acc[t], axis=0), mask=(c < IN_CHANNELS) & (r < KERNEL_H) & (s < KERNEL_W))


@triton.jit
def depthwise_weight_grad(
    dy_ptr, known_ptr, x_ptr, workspace_ptr,
    IN_H, IN_W, OUT_H, OUT_W, rows_each, columns_each, tiles, part, parts_h, parts_w,
    stride_gn, stride_gh, stride_gw, stride_kn, stride_kh, stride_kw, stride_xn, stride_xh, stride_xw,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, DERIVATIVE: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, BLOCK_P: tl.constexpr, IN_CHANNELS: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
):  # fmt: skip
    TILES_C: tl.constexpr = (IN_CHANNELS + CHANNELS.BLOCK - 1) // CHANNELS.BLOCK
    PARTS_M: tl.constexpr = CHANNELS.PER_GROUP // CHANNELS.MULTIPLIERS
    pid = tl.program_id(0)
    pid_c = pid % TILES_C
    outer = pid // TILES_C
    first_s = outer % parts_w * COLUMNS.TAPS
    first_r = outer // parts_w % parts_h * ROWS.TAPS
    outer = outer // parts_w // parts_h
    first = outer % PARTS_M * CHANNELS.MULTIPLIERS
    split = outer // PARTS_M

    share = share_of(pid_c, IN_CHANNELS, CHANNELS)
    in_channel = share.c
    if INPUT_SHUFFLE > 1:  # a shuffle in C / s groups undoes one in s
        in_channel = shuffled(share.c, IN_CHANNELS // INPUT_SHUFFLE, IN_CHANNELS)
    down = first_r * ROWS.DILATION - ROWS.PAD
    right = first_s * COLUMNS.DILATION - COLUMNS.PAD

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
    for _ in tl.static_range(ROWS.TAPS * COLUMNS.TAPS * CHANNELS.MULTIPLIERS):
        acc = acc + (tl.zeros((BLOCK_P, CHANNELS.BLOCK), tl.float32),)
    for step in tl.range(begin, end, BLOCK_P):
        tile_ok = step + lane < end
        from_h = tile_h * ROWS.TILE
        from_w = tile_w * COLUMNS.TILE
        oh0 = tl.minimum(from_h, OUT_H - ROWS.TILE)
        ow0 = tl.minimum(from_w, OUT_W - COLUMNS.TILE)
        dy = tile_gradients(
            Gradients(
                dy_ptr, known_ptr, OUT_H, OUT_W, Strides(stride_gn, 1, stride_gh, stride_gw),
                Strides(stride_kn, 1, stride_kh, stride_kw),
            ),
            Pixels(image, oh0, ow0, tile_ok, OUT_H, OUT_W), from_h, from_w, share, first, ROWS, COLUMNS, CHANNELS,
            DERIVATIVE,
        )  # fmt: skip
        ih0 = oh0 * ROWS.STRIDE + down
        iw0 = ow0 * COLUMNS.STRIDE + right
        x_rows = pixel_offsets(image, ih0, iw0, Strides(stride_xn, 1, stride_xh, stride_xw))
        x_base = x_ptr + (x_rows[:, None] + in_channel[None, :])
        acc = add_window(
            acc, dy, Patch(x_base, ih0, iw0, IN_H, IN_W, stride_xh, stride_xw), tile_ok, share.c_ok, ROWS, COLUMNS,
            CHANNELS,
        )  # fmt: skip
        image, tile_h, tile_w = next_pixels(image, tile_h, tile_w, over_n, over_h, over_w, rows_each, columns_each)

    target = workspace_ptr + tl.cast(split, tl.int64) * (IN_CHANNELS * CHANNELS.PER_GROUP * KERNEL_H * KERNEL_W)
    store_sums(
        target, acc, share.c, first, first_r, first_s, KERNEL_H, KERNEL_W, ROWS, COLUMNS, CHANNELS, IN_CHANNELS
    )  # fmt: skip


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
        **gradient_constants(problem, config, (walk.rows, walk.columns)),
        "KERNEL_H": problem.kernel_size[0],
        "KERNEL_W": problem.kernel_size[1],
        "BLOCK_P": config.block_p,
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
