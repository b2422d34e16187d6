"""The input's gradient for unequal, overlapping or explicitly listed groups: the kernel and its launch planner.

Like `input_grad`, with the group's channels, outputs and weights from a table. The reduction walks (tap of the class,
output channel of the group) as one flat index; a tap is found by multiplying with a reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Gradient, Reach, Strides, Taps
from grouped_conv.kernels.device_code.classes import class_taps
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, tap_bits, tap_mask
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.ragged.forward import tap_of
from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.gather import plan_ragged_gather
from grouped_conv.kernels.ragged.input_grad_rules import (
    ROW,
    RaggedInputGradConfig,
    grad_traits,
    parts_width,
    shares_channels,
    tiles,
    trips,
)
from grouped_conv.kernels.values.classes import class_size, class_step, most_taps
from grouped_conv.kernels.values.problem import ITEM_SIZE, ConvProblem

_ROW = tl.constexpr(ROW)


class Sums(NamedTuple):
    """How the sums are taken: kernel rows from one tap of a class to its next, the most taps, the tile, stages."""

    STEP_H: int
    STEP_W: int
    MOST_H: int
    MOST_W: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    WIDE_M: bool
    TAP_MODE: str
    PRECISION: str
    NUM_STAGES: int


class ClassTaps(NamedTuple):
    """The taps of a program's class: the first row and column, how many of each."""

    first_h: tl.tensor
    first_w: tl.tensor
    rows: tl.tensor
    columns: tl.tensor


class GroupOutputs(NamedTuple):
    """Output channels of a program's group, their reciprocal (`tap_of`), and the group's input channels."""

    outputs: tl.tensor
    reciprocal: tl.tensor
    width: tl.tensor


@triton.jit
def ragged_input_grad(
    dy_ptr, known_ptr, scale_ptr, w_ptr, table_ptr, index_ptr, dx_ptr,
    M, IN_H, IN_W, OUT_H, OUT_W, CLASS_H, CLASS_W, tiles_m,
    stride_gn, stride_gh, stride_gw,
    stride_kn, stride_kh, stride_kw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    WINDOW: tl.constexpr, SUMS: tl.constexpr, DERIVATIVE: tl.constexpr, VECTOR: tl.constexpr,
    IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, WEIGHT_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr,
):  # fmt: skip
    tl.static_assert(DERIVATIVE.SHUFFLE == 1 and DERIVATIVE.SHUFFLE_KNOWN == 1)
    CLASSES: tl.constexpr = WINDOW.STRIDE_H * WINDOW.STRIDE_W
    pid = tl.program_id(0)  # classes and pixel tiles vary fastest: consecutive programs share weights and lines
    class_w = pid % WINDOW.STRIDE_W
    class_h = pid // WINDOW.STRIDE_W % WINDOW.STRIDE_H
    pid_m = pid // CLASSES % tiles_m
    begin, columns, w_begin, width, first_out, outputs, reciprocal = load_gradient_row(
        table_ptr + (pid // CLASSES // tiles_m) * _ROW, IN_ALIGN, WIDTH_ALIGN, WEIGHT_ALIGN, OUT_ALIGN
    )

    first_h, count_h, shift_h = class_taps(
        class_h, WINDOW.KERNEL_H, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DILATION_H, SUMS.STEP_H
    )
    first_w, count_w, shift_w = class_taps(
        class_w, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DILATION_W, SUMS.STEP_W
    )
    BACK_H: tl.constexpr = (
        WINDOW.DILATION_H * SUMS.STEP_H // WINDOW.STRIDE_H
    )  # output rows from one tap of a class to the next
    BACK_W: tl.constexpr = WINDOW.DILATION_W * SUMS.STEP_W // WINDOW.STRIDE_W

    m, image, row_h, row_w = decode_pixels(pid_m, CLASS_H, CLASS_W, SUMS.BLOCK_M, SUMS.WIDE_M)
    in_h = row_h.to(tl.int32) * WINDOW.STRIDE_H + class_h
    in_w = row_w.to(tl.int32) * WINDOW.STRIDE_W + class_w
    row_ok = (m < M) & (in_h < IN_H) & (in_w < IN_W)
    oh0 = row_h.to(tl.int32) + shift_h
    ow0 = row_w.to(tl.int32) + shift_w
    g_rows = dy_ptr + (
        pixel_offsets(image, oh0, ow0, Strides(stride_gn, 1, stride_gh, stride_gw)) + first_out
    )  # [BLOCK_M]
    k_rows = g_rows
    if DERIVATIVE.ACTIVATION != "none":
        k_rows = known_ptr + (pixel_offsets(image, oh0, ow0, Strides(stride_kn, 1, stride_kh, stride_kw)) + first_out)
    oh0 = tl.where(row_ok, oh0, OUTSIDE)
    TAPS: tl.constexpr = Taps(SUMS.MOST_H, SUMS.MOST_W, -BACK_H, -BACK_W, SUMS.TAP_MODE)
    reach = Reach(tap_bits(oh0, ow0, OUT_H, OUT_W, TAPS), oh0, ow0, OUT_H, OUT_W)

    column = tl.arange(0, SUMS.BLOCK_N)
    col_ok = column < columns
    scales = None
    if scale_ptr is not None:
        scales = scale_ptr + first_out
    # [BLOCK_N]; columns past the tile's last repeat its last run: cheaper than a mask in the loop, and never stored
    last = columns - WEIGHT_ALIGN + column % WEIGHT_ALIGN
    w_cols = w_ptr + (w_begin + tl.max_contiguous(tl.multiple_of(tl.minimum(column, last), WEIGHT_ALIGN), WEIGHT_ALIGN))
    grad = Gradient(dy_ptr, known_ptr, scales, g_rows, k_rows, stride_gh, stride_gw, stride_kh, stride_kw)
    taps = ClassTaps(first_h, first_w, count_h, count_w)
    group = GroupOutputs(outputs, reciprocal, width)
    acc = ragged_gradient_sums(grad, w_cols, reach, taps, group, OUT_ALIGN, WINDOW, TAPS, SUMS, DERIVATIVE)

    x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
    if index_ptr is None:
        store_tile(dx_ptr, acc, x_rows, begin + column, stride_xc, row_ok, col_ok, VECTOR)
    elif VECTOR == 1:
        channel = tl.load(index_ptr + (begin + column), mask=col_ok, other=0)
        store_tile(dx_ptr, acc, x_rows, channel.to(tl.int64), stride_xc, row_ok, col_ok, 1)
    else:
        store_runs(dx_ptr, acc, x_rows, index_ptr + begin, row_ok, columns, VECTOR)


@triton.jit
def store_runs(ptr, values, rows, index, row_ok, columns, RUN: tl.constexpr):
    """Store [BLOCK_M, BLOCK_N] at `rows` + the listed channels, which come in aligned runs of RUN, innermost in memory.

    Only the first channel of a run is looked up. The third axis is `store_tile`'s.
    """
    BLOCK_M: tl.constexpr = values.shape[0]
    RUNS: tl.constexpr = values.shape[1] // RUN
    begin = tl.arange(0, RUNS) * RUN
    first = tl.multiple_of(tl.load(index + begin, mask=begin < columns, other=0), RUN)
    channel = first[:, None] + tl.arange(0, RUN)[None, :]
    offsets = rows[:, None, None] + channel[None, :, :]
    mask = row_ok[:, None, None] & (begin < columns)[None, :, None]
    tl.store(ptr + offsets, tl.reshape(values.to(ptr.dtype.element_ty), (BLOCK_M, RUNS, RUN)), mask=mask)


@triton.jit
def load_gradient_row(
    row_ptr, IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, WEIGHT_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr
):
    """A table row with what is known of its divisibility: a bound that is not known to be even narrows masked loads."""
    begin = tl.multiple_of(tl.load(row_ptr), IN_ALIGN)
    columns = tl.multiple_of(tl.load(row_ptr + 1).to(tl.int32), WIDTH_ALIGN)
    w_begin = tl.multiple_of(tl.load(row_ptr + 2), WEIGHT_ALIGN)
    width = tl.multiple_of(tl.load(row_ptr + 3).to(tl.int32), WEIGHT_ALIGN)
    first_out = tl.multiple_of(tl.load(row_ptr + 4).to(tl.int32), OUT_ALIGN)
    outputs = tl.multiple_of(tl.load(row_ptr + 5).to(tl.int32), OUT_ALIGN)
    return begin, columns, w_begin, width, first_out, outputs, tl.load(row_ptr + 6).to(tl.uint32)


@triton.jit
def ragged_gradient_sums(
    grad, w_cols, reach, taps, group, OUT_ALIGN: tl.constexpr, WINDOW: tl.constexpr, TAPS: tl.constexpr,
    SUMS: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    """The tile's sums, [BLOCK_M, BLOCK_N], over the class's taps and the group's output channels."""
    BLOCK_K: tl.constexpr = SUMS.BLOCK_K
    PRECISION: tl.constexpr = SUMS.PRECISION
    offs_k = tl.arange(0, BLOCK_K)
    depth = tl.multiple_of(taps.rows * taps.columns * group.outputs, OUT_ALIGN)
    acc = tl.zeros((SUMS.BLOCK_M, SUMS.BLOCK_N), tl.float32)
    for k0 in tl.range(0, depth, BLOCK_K, num_stages=SUMS.NUM_STAGES):
        flat = k0 + offs_k
        k_ok = flat < depth
        tap = tap_of(flat, group.reciprocal, OUT_ALIGN)
        k = tl.max_contiguous(tl.multiple_of(flat - tap * group.outputs, OUT_ALIGN), OUT_ALIGN)
        tap_h = tap // tl.maximum(taps.columns, 1)  # a class without taps has no trips, but the pipeline looks ahead
        tap_w = tap % tl.maximum(taps.columns, 1)
        g_offset = k - (
            tap_h.to(tl.int64) * (-TAPS.DOWN * grad.stride_gh) + tap_w.to(tl.int64) * (-TAPS.RIGHT * grad.stride_gw)
        )
        known_ptrs = None
        if DERIVATIVE.ACTIVATION != "none":
            k_offset = k - (
                tap_h.to(tl.int64) * (-TAPS.DOWN * grad.stride_kh) + tap_w.to(tl.int64) * (-TAPS.RIGHT * grad.stride_kw)
            )
            known_ptrs = grad.k_rows[:, None] + k_offset[None, :]
        scale = None
        if grad.scale is not None:
            scale = tl.load(grad.scale + k, mask=k_ok, other=0.0).to(tl.float32)[None, :]
        mask = tap_mask(reach, ((tap_h * TAPS.COLUMNS + tap_w) & 31)[None, :], tap_h[None, :], tap_w[None, :], TAPS)
        a = load_gradient(
            grad.g_rows[:, None] + g_offset[None, :], known_ptrs, mask & k_ok[None, :], scale, DERIVATIVE
        )  # [BLOCK_M, BLOCK_K]
        place = (taps.first_h + SUMS.STEP_H * tap_h) * WINDOW.KERNEL_W + (taps.first_w + SUMS.STEP_W * tap_w)
        w_rows = (k * (WINDOW.KERNEL_H * WINDOW.KERNEL_W) + place) * group.width  # [BLOCK_K]
        b = tl.load(w_cols[None, :] + w_rows[:, None], mask=k_ok[:, None], other=0.0)
        acc = multiply_add(a, b, acc, PRECISION)
    return acc


def _target(problem: ConvProblem, operands: Mapping[str, Operand]) -> tuple[Operand, str]:
    """What the kernel writes, and its dtype: the input's gradient, or the parts of groups that share channels."""
    if not shares_channels(problem.layout):
        return operands["grad_input"], problem.dtype
    shape = (problem.batch, parts_width(problem.layout), *problem.in_size)
    return Operand(channels_last_strides(shape), 16, "workspace"), "float32"


def plan_ragged_input_grad(
    problem: ConvProblem, config: RaggedInputGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch for `problem`; the weight is one flat storage. It reads the buffers `tile_table`, `channel_index`."""
    weight, (target, dtype) = operands["weight"], _target(problem, operands)
    class_h, class_w = class_size(problem)
    m = problem.batch * class_h * class_w
    tiles_m, _, programs = tiles(problem, config)
    loading = gradient_arguments(problem, operands)
    strides = stride_integers("x", target)
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    steps = class_step(stride_h, dilation_h), class_step(stride_w, dilation_w)
    most = most_taps(problem)
    known, vector = grad_traits(problem.layout), 16 // ITEM_SIZE[dtype]
    integers = (
        Integer.of("M", m),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("CLASS_H", class_h),
        Integer.of("CLASS_W", class_w),
        Integer.of("tiles_m", tiles_m),
        *loading.integers,
        *strides.integers,
    )
    constants = {
        "WINDOW": window_constant(problem),
        "SUMS": Sums(
            *steps,
            *most,
            config.block_m,
            config.block_n,
            config.block_k,
            WIDE_M=m > INT32_MAX - config.block_m,
            TAP_MODE="word" if math.prod(most) <= 31 else "direct",
            PRECISION=problem.precision,
            NUM_STAGES=config.num_stages,
        ),
        "IN_ALIGN": known.in_align,
        "WIDTH_ALIGN": known.width_align,
        "WEIGHT_ALIGN": traits(problem.layout).width_align,
        "OUT_ALIGN": known.out_align,
        "VECTOR": vector if target.strides[1] == 1 and not (known.gather and known.in_align < vector) else 1,
        **loading.constants,
        **strides.constants,
    }
    buffers = [
        *loading.buffers,
        Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment),
        Buffer("table_ptr", "tile_table", "int64"),
        Buffer("dx_ptr", target.buffer, dtype, target.alignment),
    ]
    if known.gather:
        buffers.append(Buffer("index_ptr", "channel_index", "int32"))
    else:
        constants["index_ptr"] = None
    if problem.epilogue.scale:
        buffers.append(Buffer("scale_ptr", operands["scale"].buffer, problem.dtype, operands["scale"].alignment))
    else:
        constants["scale_ptr"] = None
    return Launch(
        ragged_input_grad, config, (programs, 1, 1), tuple(buffers), integers, constants, trips(problem, config)
    )


def plan_second_pass(
    problem: ConvProblem, config: RaggedInputGradConfig, operands: Mapping[str, Operand], grad_scale: bool
) -> list[Launch]:
    """The launch that adds the parts of groups that share channels; none where no groups do."""
    return [plan_ragged_gather(problem, operands["grad_input"])] if shares_channels(problem.layout) else []
