"""The gradient of the input, for equal groups: the kernel and its launch planner.

Rows are input pixels of one class (`input_grad_rules`), columns the input channels of one group or of a pack of groups,
the reduction runs over the class's taps and the output channels. The output's gradient has its channels innermost,
weights are [K, R, S, C/groups] as they lie: nothing is transposed in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Reach, Strides, Taps
from grouped_conv.kernels.device_code.classes import class_taps
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, shuffled, tap_bits, tap_mask
from grouped_conv.kernels.device_code.reduction import load_weight, multiply_add
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig, tiles, trips
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.values.classes import class_size, class_step, most_taps
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def input_grad(
    dy_ptr,
    known_ptr,
    scale_ptr,
    w_ptr,
    dx_ptr,
    M,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    CLASS_H,
    CLASS_W,
    tiles_m,
    groups,
    kernel_rows,
    kernel_columns,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    PACK: tl.constexpr,
    WINDOW: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOST_H: tl.constexpr,
    MOST_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LOOP_ORDER: tl.constexpr,
    ISOLATE: tl.constexpr,
    SWAP: tl.constexpr,
    WIDE_M: tl.constexpr,
    TAP_MODE: tl.constexpr,
    PRECISION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    NUM_STAGES: tl.constexpr,
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
    SHUFFLE: tl.constexpr = DERIVATIVE.SHUFFLE
    SHUFFLE_KNOWN: tl.constexpr = DERIVATIVE.SHUFFLE_KNOWN
    OUT_CHANNELS: tl.constexpr = DERIVATIVE.OUT_CHANNELS
    COLUMNS: tl.constexpr = PACK * C_PER_GROUP
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    pid_n = pid % TILES_N
    class_w = pid // TILES_N % STRIDE_W
    class_h = pid // (TILES_N * STRIDE_W) % STRIDE_H
    pid_m = pid // (TILES_N * STRIDE_W * STRIDE_H) % tiles_m
    pack = pid // (TILES_N * STRIDE_W * STRIDE_H) // tiles_m

    first_h, count_h, shift_h = class_taps(class_h, KERNEL_H, STRIDE_H, PAD_H, DILATION_H, STEP_H, kernel_rows)
    first_w, count_w, shift_w = class_taps(class_w, KERNEL_W, STRIDE_W, PAD_W, DILATION_W, STEP_W, kernel_columns)
    BACK_H: tl.constexpr = DILATION_H * STEP_H // STRIDE_H  # output rows from one tap of a class to the next
    BACK_W: tl.constexpr = DILATION_W * STEP_W // STRIDE_W

    m, image, row_h, row_w = decode_pixels(pid_m, CLASS_H, CLASS_W, BLOCK_M, WIDE_M)
    in_h = row_h.to(tl.int32) * STRIDE_H + class_h
    in_w = row_w.to(tl.int32) * STRIDE_W + class_w
    row_ok = (m < M) & (in_h < IN_H) & (in_w < IN_W)
    oh0 = row_h.to(tl.int32) + shift_h
    ow0 = row_w.to(tl.int32) + shift_w
    g_rows = pixel_offsets(
        image, oh0, ow0, Strides(stride_gn, 1, stride_gh, stride_gw)
    )  # [BLOCK_M]; read where a tap is inside
    k_rows = g_rows
    if ACTIVATION != "none":
        k_rows = pixel_offsets(image, oh0, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))
    oh0 = tl.where(row_ok, oh0, OUTSIDE)
    TAPS: tl.constexpr = Taps(MOST_H, MOST_W, -BACK_H, -BACK_W, TAP_MODE)
    reach = Reach(tap_bits(oh0, ow0, OUT_H, OUT_W, TAPS), oh0, ow0, OUT_H, OUT_W)

    column = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    col_ok = column < COLUMNS
    if PACK > 1:
        col_ok = col_ok & (pack * PACK + column // C_PER_GROUP < groups)
    depth = count_h * count_w * (PACK * K_PER_GROUP)
    if STRIDE_H == 1 and STRIDE_W == 1:  # the same, unknown to the compiler
        depth = kernel_rows * kernel_columns * (PACK * K_PER_GROUP)
    acc = gradient_sums(
        dy_ptr, known_ptr, scale_ptr, w_ptr, g_rows, k_rows, reach, stride_gh, stride_gw,
        stride_kh, stride_kw, pack, column, col_ok, first_h, first_w, count_w, groups, depth, 0, C_PER_GROUP,
        K_PER_GROUP, PACK, KERNEL_H, KERNEL_W, STEP_H, STEP_W, BACK_H, BACK_W, MOST_W, BLOCK_M, BLOCK_N, BLOCK_K,
        LOOP_ORDER, False, SWAP, TAPS, PRECISION, DERIVATIVE, SHUFFLE, SHUFFLE_KNOWN, OUT_CHANNELS,
        NUM_STAGES,
    )  # fmt: skip
    if PACK > 1 and ISOLATE:
        if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:  # 0 * inf of a neighbour, perhaps
            for member in tl.range(PACK):
                alone = gradient_sums(
                    dy_ptr, known_ptr, scale_ptr, w_ptr, g_rows, k_rows, reach, stride_gh,
                    stride_gw, stride_kh, stride_kw, pack, column, col_ok, first_h, first_w, count_w, groups,
                    depth, member, C_PER_GROUP, K_PER_GROUP, PACK, KERNEL_H, KERNEL_W, STEP_H, STEP_W, BACK_H, BACK_W,
                    MOST_W, BLOCK_M, BLOCK_N, BLOCK_K, LOOP_ORDER, True, SWAP, TAPS, PRECISION,
                    DERIVATIVE, SHUFFLE, SHUFFLE_KNOWN, OUT_CHANNELS, 1,
                )  # fmt: skip
                acc = tl.where((column // C_PER_GROUP == member)[None, :], alone, acc)

    channel = pack * COLUMNS + column
    x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
    if INPUT_SHUFFLE == 1:
        store_tile(dx_ptr, acc, x_rows, channel, stride_xc, row_ok, col_ok, VECTOR)
    else:  # a shuffle in C / s groups undoes one in s
        place = shuffled(channel, IN_CHANNELS // INPUT_SHUFFLE, IN_CHANNELS)
        store_tile(dx_ptr, acc, x_rows, place, stride_xc, row_ok, col_ok, 1)


@triton.jit
def gradient_sums(
    dy_ptr,
    known_ptr,
    scale_ptr,
    w_ptr,
    g_rows,
    k_rows,
    reach,
    stride_gh,
    stride_gw,
    stride_kh,
    stride_kw,
    pack,
    column,
    col_ok,
    first_h,
    first_w,
    count_w,
    groups,
    depth,
    member,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    PACK: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    BACK_H: tl.constexpr,
    BACK_W: tl.constexpr,
    MOST_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LOOP_ORDER: tl.constexpr,
    ALONE: tl.constexpr,
    SWAP: tl.constexpr,
    TAPS: tl.constexpr,
    PRECISION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    SHUFFLE: tl.constexpr,
    SHUFFLE_KNOWN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """The tile's sums, [BLOCK_M, BLOCK_N]; ALONE takes only the output channels of the pack's group `member`."""
    DEPTH: tl.constexpr = PACK * K_PER_GROUP
    PLACES: tl.constexpr = KERNEL_H * KERNEL_W
    WHOLE: tl.constexpr = LOOP_ORDER != "flat"  # no step hangs over a tap's end: what changes with the step is scalar
    offs_k = tl.arange(0, BLOCK_K)
    w_cols = w_ptr + (column % C_PER_GROUP)  # [BLOCK_N]
    w_tile = w_cols[None, :] + ((pack.to(tl.int64) * DEPTH + offs_k) * (PLACES * C_PER_GROUP))[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for k0 in tl.range(0, depth, BLOCK_K, num_stages=NUM_STAGES):
        if WHOLE:
            tap = k0 // DEPTH
            k_first = tl.multiple_of(k0 % DEPTH, BLOCK_K)
            k = k_first + offs_k
        else:
            tap = (k0 + offs_k) // DEPTH  # [BLOCK_K]
            k = (k0 + offs_k) % DEPTH
        tap_h = tap // tl.maximum(count_w, 1)  # a class without taps has no trips, but the pipeline looks ahead
        tap_w = tap % tl.maximum(count_w, 1)
        back_g = tap_h * (BACK_H * stride_gh) + tap_w * (BACK_W * stride_gw)
        back_k = back_g
        if DERIVATIVE.ACTIVATION != "none":
            back_k = tap_h * (BACK_H * stride_kh) + tap_w * (BACK_W * stride_kw)
        place = (first_h + STEP_H * tap_h) * KERNEL_W + (first_w + STEP_W * tap_w)
        channel = pack * DEPTH + k
        k_ok = k0 + offs_k < depth
        if PACK > 1:
            k_ok = k_ok & (pack * PACK + k // K_PER_GROUP < groups)
        if ALONE:
            k_ok = k_ok & (k // K_PER_GROUP == member)
        scale = None
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + channel, mask=k_ok, other=0.0).to(tl.float32)[None, :]
        known_ptrs = None
        if WHOLE:
            mask = tap_mask(reach, (tap_h * MOST_W + tap_w) & 31, tap_h, tap_w, TAPS)
            grad_ptrs = dy_ptr + (g_rows[:, None] + (pack * DEPTH + offs_k)[None, :]) + (k_first - back_g)
            if DERIVATIVE.ACTIVATION != "none":
                known_ptrs = known_ptr + (k_rows[:, None] + (pack * DEPTH + offs_k)[None, :]) + (k_first - back_k)
            w_ptrs = w_tile + tl.cast(k_first * PLACES + place, tl.int64) * C_PER_GROUP
        else:
            bit = ((tap_h * MOST_W + tap_w) & 31)[None, :]
            mask = k_ok[None, :] & tap_mask(reach, bit, tap_h[None, :], tap_w[None, :], TAPS)
            grad_channel = shuffled(channel, SHUFFLE, OUT_CHANNELS)
            grad_ptrs = dy_ptr + (g_rows[:, None] + (grad_channel - back_g)[None, :])
            if DERIVATIVE.ACTIVATION != "none":
                known_channel = shuffled(channel, SHUFFLE_KNOWN, OUT_CHANNELS)
                known_ptrs = known_ptr + (k_rows[:, None] + (known_channel - back_k)[None, :])
            w_ptrs = w_cols[None, :] + ((channel.to(tl.int64) * PLACES + place) * C_PER_GROUP)[:, None]
        a = load_gradient(grad_ptrs, known_ptrs, mask, scale, DERIVATIVE)  # [BLOCK_M, BLOCK_K]
        if PACK > 1:
            diagonal = (k // K_PER_GROUP)[:, None] == (column // C_PER_GROUP)[None, :]
            b = tl.load(w_ptrs, mask=diagonal & k_ok[:, None] & col_ok[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        else:
            b = load_weight(w_ptrs, col_ok, k_ok, C_PER_GROUP % BLOCK_N == 0, WHOLE)
        if SWAP:
            acc = multiply_add(tl.trans(b), tl.trans(a), acc, PRECISION)
        else:
            acc = multiply_add(a, b, acc, PRECISION)
    if SWAP:
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
    steps = [class_step(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
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
    before = problem.input_shuffle
    constants = {
        "C_PER_GROUP": problem.c_per_group,
        "K_PER_GROUP": problem.k_per_group,
        "PACK": config.pack,
        "WINDOW": window_constant(problem),
        **{f"STEP_{axis}": size for axis, size in zip("HW", steps, strict=True)},
        **{f"MOST_{axis}": size for axis, size in zip("HW", most, strict=True)},
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "LOOP_ORDER": config.loop_order,
        "ISOLATE": config.isolate,
        "SWAP": config.swap,
        "WIDE_M": m > INT32_MAX - config.block_m,
        "TAP_MODE": "word" if math.prod(most) <= 31 else "direct",
        "PRECISION": problem.precision,
        "INPUT_SHUFFLE": before,
        "IN_CHANNELS": problem.in_channels if before > 1 else 1,
        "VECTOR": 16 // problem.item_size if target.strides[1] == 1 else 1,
        "NUM_STAGES": config.num_stages,
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
