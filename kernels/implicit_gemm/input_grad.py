"""The gradient of the input, for equal groups: the kernel and its launch planner.

Rows are input pixels of one class (`input_grad_rules`), columns the input channels of one group or of a pack of groups,
the reduction runs over the class's taps and the output channels. The output's gradient has its channels innermost,
weights are [K, R, S, C/groups] as in the forward pass: nothing is transposed in memory.
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
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, shuffled, tap_bits, tap_mask
from grouped_conv.kernels.device_code.reduction import load_weight, multiply_add
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig, tiles, trips
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import (
    Operand,
    input_shuffle_constants,
    store_vector,
    stride_integers,
)
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.values.classes import class_size, class_step, most_taps
from grouped_conv.kernels.values.problem import ConvProblem


class Steps(NamedTuple):
    """Kernel rows (columns) from one tap of a class to its next, and the most taps that a class has."""

    STEP_H: int
    STEP_W: int
    MOST_H: int
    MOST_W: int


class Sums(NamedTuple):
    """What `gradient_sums` adds up: groups and their pack, the kernel's taps, the tile; SWAP sums it transposed."""

    C_PER_GROUP: int
    K_PER_GROUP: int
    PACK: int
    TAPS: int
    KERNEL_W: int
    STEP_H: int
    STEP_W: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    ORDER: str
    SWAP: bool
    PRECISION: str


class Tile(NamedTuple):
    """Around the sums: whether packed groups are isolated, how pixels are counted and taps masked, stages, stores."""

    ISOLATE: bool
    WIDE_M: bool
    TAP_MODE: str
    VECTOR: int
    NUM_STAGES: int


class ClassTaps(NamedTuple):
    """The taps of a program's class: the first row and column, how many columns, and the length of the reduction."""

    first_h: tl.tensor
    first_w: tl.tensor
    columns: tl.tensor
    depth: tl.tensor


class PackColumns(NamedTuple):
    """A program's pack among all groups; its columns, [BLOCK_N], in the pack's channels, and which are inside."""

    pack: tl.tensor
    groups: tl.tensor
    index: tl.tensor
    ok: tl.tensor


@triton.jit
def input_grad(
    dy_ptr, known_ptr, scale_ptr, w_ptr, dx_ptr,
    M, IN_H, IN_W, OUT_H, OUT_W, CLASS_H, CLASS_W, tiles_m, groups, kernel_rows, kernel_columns,
    stride_gn, stride_gh, stride_gw,
    stride_kn, stride_kh, stride_kw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    WINDOW: tl.constexpr, STEPS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr, DERIVATIVE: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr, IN_CHANNELS: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = SUMS.PACK * SUMS.C_PER_GROUP
    TILES_N: tl.constexpr = (COLUMNS + SUMS.BLOCK_N - 1) // SUMS.BLOCK_N
    pid = tl.program_id(0)
    pid_n = pid % TILES_N
    class_w = pid // TILES_N % WINDOW.STRIDE_W
    class_h = pid // (TILES_N * WINDOW.STRIDE_W) % WINDOW.STRIDE_H
    pid_m = pid // (TILES_N * WINDOW.STRIDE_W * WINDOW.STRIDE_H) % tiles_m
    pack = pid // (TILES_N * WINDOW.STRIDE_W * WINDOW.STRIDE_H) // tiles_m

    first_h, count_h, shift_h = class_taps(
        class_h, WINDOW.KERNEL_H, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DILATION_H, STEPS.STEP_H, kernel_rows
    )
    first_w, count_w, shift_w = class_taps(
        class_w, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DILATION_W, STEPS.STEP_W, kernel_columns
    )
    BACK_H: tl.constexpr = (
        WINDOW.DILATION_H * STEPS.STEP_H // WINDOW.STRIDE_H
    )  # output rows from one tap of a class to the next
    BACK_W: tl.constexpr = WINDOW.DILATION_W * STEPS.STEP_W // WINDOW.STRIDE_W

    m, image, row_h, row_w = decode_pixels(pid_m, CLASS_H, CLASS_W, SUMS.BLOCK_M, TILE.WIDE_M)
    in_h = row_h.to(tl.int32) * WINDOW.STRIDE_H + class_h
    in_w = row_w.to(tl.int32) * WINDOW.STRIDE_W + class_w
    row_ok = (m < M) & (in_h < IN_H) & (in_w < IN_W)
    oh0 = row_h.to(tl.int32) + shift_h
    ow0 = row_w.to(tl.int32) + shift_w
    g_rows = pixel_offsets(
        image, oh0, ow0, Strides(stride_gn, 1, stride_gh, stride_gw)
    )  # [SUMS.BLOCK_M]; read where a tap is inside
    k_rows = g_rows
    if DERIVATIVE.ACTIVATION != "none":
        k_rows = pixel_offsets(image, oh0, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))
    oh0 = tl.where(row_ok, oh0, OUTSIDE)
    TAPS: tl.constexpr = Taps(STEPS.MOST_H, STEPS.MOST_W, -BACK_H, -BACK_W, TILE.TAP_MODE)
    reach = Reach(tap_bits(oh0, ow0, OUT_H, OUT_W, TAPS), oh0, ow0, OUT_H, OUT_W)

    column = pid_n * SUMS.BLOCK_N + tl.arange(0, SUMS.BLOCK_N)
    col_ok = column < COLUMNS
    if SUMS.PACK > 1:
        col_ok = col_ok & (pack * SUMS.PACK + column // SUMS.C_PER_GROUP < groups)
    depth = count_h * count_w * (SUMS.PACK * SUMS.K_PER_GROUP)
    if WINDOW.STRIDE_H == 1 and WINDOW.STRIDE_W == 1:  # the same, unknown to the compiler
        depth = kernel_rows * kernel_columns * (SUMS.PACK * SUMS.K_PER_GROUP)
    gradient = Gradient(dy_ptr, known_ptr, scale_ptr, g_rows, k_rows, stride_gh, stride_gw, stride_kh, stride_kw)
    taps = ClassTaps(first_h, first_w, count_w, depth)
    columns = PackColumns(pack, groups, column, col_ok)
    acc = gradient_sums(
        gradient, w_ptr, reach, taps, columns, 0, TAPS, SUMS, DERIVATIVE, False, TILE.NUM_STAGES
    )  # fmt: skip
    if SUMS.PACK > 1 and TILE.ISOLATE:
        if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:  # 0 * inf of a neighbour, perhaps
            for member in tl.range(SUMS.PACK):
                alone = gradient_sums(gradient, w_ptr, reach, taps, columns, member, TAPS, SUMS, DERIVATIVE, True, 1)
                acc = tl.where((column // SUMS.C_PER_GROUP == member)[None, :], alone, acc)

    channel = pack * COLUMNS + column
    x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
    if INPUT_SHUFFLE == 1:
        store_tile(dx_ptr, acc, x_rows, channel, stride_xc, row_ok, col_ok, TILE.VECTOR)
    else:  # a shuffle in C / s groups undoes one in s
        place = shuffled(channel, IN_CHANNELS // INPUT_SHUFFLE, IN_CHANNELS)
        store_tile(dx_ptr, acc, x_rows, place, stride_xc, row_ok, col_ok, 1)


@triton.jit
def load_diagonal(pointers, k, k_ok, columns, SUMS: tl.constexpr, EVEN_K: tl.constexpr):
    """[BLOCK_K, BLOCK_N] weights; of a pack only those between channels of one group."""
    if SUMS.PACK > 1:
        diagonal = (k // SUMS.K_PER_GROUP)[:, None] == (columns.index // SUMS.C_PER_GROUP)[None, :]
        return tl.load(pointers, mask=diagonal & k_ok[:, None] & columns.ok[None, :], other=0.0)
    else:
        return load_weight(pointers, columns.ok, k_ok, SUMS.C_PER_GROUP % SUMS.BLOCK_N == 0, EVEN_K)


@triton.jit
def gradient_sums(
    grad, w_ptr, reach, taps, columns, member, TAPS: tl.constexpr, SUMS: tl.constexpr, DERIVATIVE: tl.constexpr,
    ALONE: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """The tile's sums, [BLOCK_M, BLOCK_N]; ALONE takes only the output channels of the pack's group `member`."""
    PACK: tl.constexpr = SUMS.PACK
    C_PER_GROUP: tl.constexpr = SUMS.C_PER_GROUP
    K_PER_GROUP: tl.constexpr = SUMS.K_PER_GROUP
    BLOCK_K: tl.constexpr = SUMS.BLOCK_K
    PRECISION: tl.constexpr = SUMS.PRECISION
    DEPTH: tl.constexpr = PACK * K_PER_GROUP
    WHOLE: tl.constexpr = SUMS.ORDER != "flat"  # no step hangs over a tap's end: what changes with the step is scalar
    offs_k = tl.arange(0, BLOCK_K)
    w_cols = w_ptr + (columns.index % C_PER_GROUP)  # [BLOCK_N]
    w_tile = w_cols[None, :] + ((columns.pack.to(tl.int64) * DEPTH + offs_k) * (SUMS.TAPS * C_PER_GROUP))[:, None]
    acc = tl.zeros((SUMS.BLOCK_N, SUMS.BLOCK_M) if SUMS.SWAP else (SUMS.BLOCK_M, SUMS.BLOCK_N), tl.float32)
    for k0 in tl.range(0, taps.depth, BLOCK_K, num_stages=NUM_STAGES):
        if WHOLE:
            tap = k0 // DEPTH
            k_first = tl.multiple_of(k0 % DEPTH, BLOCK_K)
            k = k_first + offs_k
        else:
            tap = (k0 + offs_k) // DEPTH  # [BLOCK_K]
            k = (k0 + offs_k) % DEPTH
        tap_h = tap // tl.maximum(taps.columns, 1)  # a class without taps has no trips, but the pipeline looks ahead
        tap_w = tap % tl.maximum(taps.columns, 1)
        back_g = tap_h * (-TAPS.DOWN * grad.stride_gh) + tap_w * (-TAPS.RIGHT * grad.stride_gw)
        back_k = back_g
        if DERIVATIVE.ACTIVATION != "none":
            back_k = tap_h * (-TAPS.DOWN * grad.stride_kh) + tap_w * (-TAPS.RIGHT * grad.stride_kw)
        place = (taps.first_h + SUMS.STEP_H * tap_h) * SUMS.KERNEL_W + (taps.first_w + SUMS.STEP_W * tap_w)
        channel = columns.pack * DEPTH + k
        k_ok = k0 + offs_k < taps.depth
        if PACK > 1:
            k_ok = k_ok & (columns.pack * PACK + k // K_PER_GROUP < columns.groups)
        if ALONE:
            k_ok = k_ok & (k // K_PER_GROUP == member)
        scale = None
        if grad.scale is not None:
            scale = tl.load(grad.scale + channel, mask=k_ok, other=0.0).to(tl.float32)[None, :]
        known_ptrs = None
        if WHOLE:
            mask = tap_mask(reach, (tap_h * TAPS.COLUMNS + tap_w) & 31, tap_h, tap_w, TAPS)
            grad_ptrs = grad.dy + (grad.g_rows[:, None] + (columns.pack * DEPTH + offs_k)[None, :]) + (k_first - back_g)
            if DERIVATIVE.ACTIVATION != "none":
                known_ptrs = (
                    grad.known + (grad.k_rows[:, None] + (columns.pack * DEPTH + offs_k)[None, :]) + (k_first - back_k)
                )
            w_ptrs = w_tile + tl.cast(k_first * SUMS.TAPS + place, tl.int64) * C_PER_GROUP
        else:
            bit = ((tap_h * TAPS.COLUMNS + tap_w) & 31)[None, :]
            mask = k_ok[None, :] & tap_mask(reach, bit, tap_h[None, :], tap_w[None, :], TAPS)
            grad_channel = shuffled(channel, DERIVATIVE.SHUFFLE, DERIVATIVE.OUT_CHANNELS)
            grad_ptrs = grad.dy + (grad.g_rows[:, None] + (grad_channel - back_g)[None, :])
            if DERIVATIVE.ACTIVATION != "none":
                known_channel = shuffled(channel, DERIVATIVE.SHUFFLE_KNOWN, DERIVATIVE.OUT_CHANNELS)
                known_ptrs = grad.known + (grad.k_rows[:, None] + (known_channel - back_k)[None, :])
            w_ptrs = w_cols[None, :] + ((channel.to(tl.int64) * SUMS.TAPS + place) * C_PER_GROUP)[:, None]
        a = load_gradient(grad_ptrs, known_ptrs, mask, scale, DERIVATIVE)  # [BLOCK_M, BLOCK_K]
        b = load_diagonal(w_ptrs, k, k_ok, columns, SUMS, WHOLE)
        if SUMS.SWAP:
            acc = multiply_add(tl.trans(b), tl.trans(a), acc, PRECISION)
        else:
            acc = multiply_add(a, b, acc, PRECISION)
    if SUMS.SWAP:
        acc = tl.trans(acc)
    return acc


def plan_input_grad(problem: ConvProblem, config: InputGradConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem`; the weight is packed as [K, R, S, C / groups]."""
    weight, target = operands["weight"], operands["grad_input"]
    class_h, class_w = class_size(problem)
    m = problem.batch * class_h * class_w
    tiles_m, _, programs = tiles(problem, config)
    loading = gradient_arguments(problem, operands)
    strides = stride_integers("x", target)
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    steps = class_step(stride_h, dilation_h), class_step(stride_w, dilation_w)
    most = most_taps(problem)
    integers = (
        Integer.of("M", m),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("CLASS_H", class_h),
        Integer.of("CLASS_W", class_w),
        Integer.of("tiles_m", tiles_m),
        Integer.of("groups", problem.groups),
        Integer.of("kernel_rows", problem.kernel_size[0]),
        Integer.of("kernel_columns", problem.kernel_size[1]),
        *loading.integers,
        *strides.integers,
    )
    constants = {
        "WINDOW": window_constant(problem),
        "STEPS": Steps(*steps, *most),
        "SUMS": Sums(
            problem.c_per_group,
            problem.k_per_group,
            config.pack,
            problem.taps,
            problem.kernel_size[1],
            *steps,
            config.block_m,
            config.block_n,
            config.block_k,
            config.loop_order,
            config.swap,
            problem.precision,
        ),
        "TILE": Tile(
            config.isolate,
            WIDE_M=m > INT32_MAX - config.block_m,
            TAP_MODE="word" if math.prod(most) <= 31 else "direct",
            VECTOR=store_vector(problem, target),
            NUM_STAGES=config.num_stages,
        ),
        **input_shuffle_constants(problem),
        **loading.constants,
        **strides.constants,
    }
    buffers = [*loading.buffers, Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment)]
    buffers.append(Buffer("dx_ptr", target.buffer, problem.dtype, target.alignment))
    if problem.epilogue.scale:
        buffers.append(Buffer("scale_ptr", operands["scale"].buffer, problem.dtype, operands["scale"].alignment))
    else:
        constants["scale_ptr"] = None
    return Launch(input_grad, config, (programs, 1, 1), tuple(buffers), integers, constants, trips(problem, config))
