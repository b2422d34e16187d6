"""The weight's gradient for unequal, overlapping or explicitly listed groups: the kernel and its launch planner.

Like `weight_grad`, with the tile's channels and weights from a table; a tap is found by multiplying with a reciprocal.
The sums of one split are stored in the order of the flat weight storage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import OUTSIDE, inside, next_pixels
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import pixels, pixels_per_split
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import FLOAT32_VECTOR, Operand
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.ragged.forward import tap_of
from grouped_conv.kernels.ragged.forward_rules import traits, weight_elements
from grouped_conv.kernels.ragged.weight_grad_rules import ROW, RaggedWeightGradConfig, tiles
from grouped_conv.kernels.ragged.weight_reduce import plan_ragged_weight_reduce
from grouped_conv.kernels.values.problem import ConvProblem

_ROW = tl.constexpr(ROW)


class Tile(NamedTuple):
    """The tile of a program and the pipeline of its loop."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    NUM_STAGES: int


@triton.jit
def ragged_weight_grad(
    dy_ptr, known_ptr, x_ptr, table_ptr, index_ptr, workspace_ptr,
    M, part, IN_H, IN_W, OUT_H, OUT_W, rows, elements,
    stride_gn, stride_gh, stride_gw,
    stride_kn, stride_kh, stride_kw,
    stride_xn, stride_xh, stride_xw,
    WINDOW: tl.constexpr, TILE: tl.constexpr, DERIVATIVE: tl.constexpr, PRECISION: tl.constexpr,
    IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    tl.static_assert(DERIVATIVE.SHUFFLE == 1 and DERIVATIVE.SHUFFLE_KNOWN == 1)
    split = tl.program_id(0) // rows  # consecutive programs share pixels
    entry, width, reciprocal, first_out, count, first_weight, weights, target = load_weight_row(
        table_ptr + (tl.program_id(0) % rows) * _ROW, IN_ALIGN, WIDTH_ALIGN, OUT_ALIGN
    )
    row = tl.arange(0, TILE.BLOCK_M)
    row_ok = row < count
    channel = first_out + row

    column = tl.arange(0, TILE.BLOCK_N)
    col_ok = column < weights
    flat = first_weight + column
    tap = tap_of(flat, reciprocal, WIDTH_ALIGN)
    down = (
        tap // WINDOW.KERNEL_W
    ) * WINDOW.DILATION_H - WINDOW.PAD_H  # from an output pixel's first row to the tap's, [TILE.BLOCK_N]
    right = (tap % WINDOW.KERNEL_W) * WINDOW.DILATION_W - WINDOW.PAD_W
    in_channel = entry + tl.max_contiguous(tl.multiple_of(flat - tap * width, WIDTH_ALIGN), WIDTH_ALIGN)
    if index_ptr is not None:
        in_channel = tl.load(index_ptr + in_channel)  # inside the list even past the last weight
        in_channel = tl.max_contiguous(tl.multiple_of(in_channel, IN_ALIGN), IN_ALIGN)
    x_cols = x_ptr + (down.to(tl.int64) * stride_xh + right.to(tl.int64) * stride_xw + in_channel)
    down = tl.where(col_ok, down, OUTSIDE)
    g_channels = dy_ptr + channel

    begin = split.to(tl.int64) * part
    end = tl.minimum(begin + part, M)
    offs_k = tl.arange(0, TILE.BLOCK_K)
    pixel = begin + offs_k
    image, out_h, out_w = pixel // (OUT_H * OUT_W), (pixel // OUT_W % OUT_H).to(tl.int32), (pixel % OUT_W).to(tl.int32)
    over_n = TILE.BLOCK_K // (OUT_H * OUT_W)
    over_h = TILE.BLOCK_K // OUT_W % OUT_H
    over_w = TILE.BLOCK_K % OUT_W
    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    for first in tl.range(begin, end, TILE.BLOCK_K, num_stages=TILE.NUM_STAGES):
        left = tl.minimum(end - first, TILE.BLOCK_K).to(tl.int32)
        ok = offs_k < left
        g_rows = pixel_offsets(image, out_h, out_w, Strides(stride_gn, 1, stride_gh, stride_gw))
        known_ptrs = None
        if DERIVATIVE.ACTIVATION != "none":
            k_rows = pixel_offsets(image, out_h, out_w, Strides(stride_kn, 1, stride_kh, stride_kw))
            known_ptrs = known_ptr + (k_rows[None, :] + channel[:, None])
        a = load_gradient(
            g_channels[:, None] + g_rows[None, :],
            known_ptrs,
            offs_k[None, :] < tl.where(row_ok, left, 0)[:, None],
            None,
            DERIVATIVE,
        )  # [BLOCK_M, BLOCK_K], through transposed pointers: transposing a loaded tile costs the async copy
        in_h = out_h * WINDOW.STRIDE_H
        in_w = out_w * WINDOW.STRIDE_W
        x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
        in_h = tl.where(ok, in_h, OUTSIDE)
        mask = inside(in_h[:, None] + down[None, :], IN_H) & inside(in_w[:, None] + right[None, :], IN_W)
        b = tl.load(x_cols[None, :] + x_rows[:, None], mask=mask, other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = multiply_add(a, b, acc, PRECISION)
        image, out_h, out_w = next_pixels(image, out_h, out_w, over_n, over_h, over_w, OUT_H, OUT_W)

    depth = tl.multiple_of(width * (WINDOW.KERNEL_H * WINDOW.KERNEL_W), WIDTH_ALIGN)
    sums = workspace_ptr + (split.to(tl.int64) * elements + target)
    store_tile(sums, acc, row.to(tl.int64) * depth, column, 1, row_ok, col_ok, VECTOR)


@triton.jit
def load_weight_row(row_ptr, IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr):
    """A table row with what is known of its divisibility."""
    entry = tl.multiple_of(tl.load(row_ptr), IN_ALIGN)
    width = tl.multiple_of(tl.load(row_ptr + 1).to(tl.int32), WIDTH_ALIGN)
    reciprocal = tl.load(row_ptr + 2).to(tl.uint32)
    first_out = tl.multiple_of(tl.load(row_ptr + 3).to(tl.int32), OUT_ALIGN)
    count = tl.multiple_of(tl.load(row_ptr + 4).to(tl.int32), OUT_ALIGN)
    first_weight = tl.multiple_of(tl.load(row_ptr + 5).to(tl.int32), WIDTH_ALIGN)
    weights = tl.multiple_of(tl.load(row_ptr + 6).to(tl.int32), WIDTH_ALIGN)
    target = tl.multiple_of(tl.load(row_ptr + 7), WIDTH_ALIGN)
    return entry, width, reciprocal, first_out, count, first_weight, weights, target


def plan_ragged_weight_grad(
    problem: ConvProblem, config: RaggedWeightGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch that leaves partial sums in `workspace`, one flat weight storage per split, in fp32."""
    x, known = operands["input"], traits(problem.layout)
    rows, programs = tiles(problem, config)
    part = pixels_per_split(problem, config)
    loading = gradient_arguments(problem, operands)
    integers = (
        Integer.of("M", pixels(problem)),
        Integer.of("part", part),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("rows", rows),
        Integer.of("elements", weight_elements(problem.layout, problem.taps), wide=True, stride=True),
        *loading.integers,
        *(
            Integer.of(f"stride_x{axis}", x.strides[index], wide=True, stride=True)
            for index, axis in ((0, "n"), (2, "h"), (3, "w"))
        ),
    )
    constants = {
        "WINDOW": window_constant(problem),
        "TILE": Tile(config.block_m, config.block_n, config.block_k, config.num_stages),
        "IN_ALIGN": known.in_align,
        "WIDTH_ALIGN": known.width_align,
        "OUT_ALIGN": known.out_align,
        "PRECISION": problem.precision,
        "VECTOR": FLOAT32_VECTOR if known.width_align % FLOAT32_VECTOR == 0 else 1,
        **({} if known.gather else {"index_ptr": None}),
        **loading.constants,
    }
    buffers = (
        *loading.buffers,
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("table_ptr", "tile_table", "int64"),
        *([Buffer("index_ptr", "channel_index", "int32")] if known.gather else []),
        Buffer("workspace_ptr", "workspace", "float32"),
    )
    steps = math.ceil(part / config.block_k)
    return Launch(ragged_weight_grad, config, (programs, 1, 1), buffers, integers, constants, steps)


def plan_second_pass(
    problem: ConvProblem, config: RaggedWeightGradConfig, operands: Mapping[str, Operand], grad_scale: bool
) -> list[Launch]:
    """The launch that adds the splits into the flat `grad_weight`, and writes `grad_scale` if wanted."""
    return [plan_ragged_weight_reduce(problem, config.splits, operands, grad_scale)]
