"""Forward grouped convolution as an implicit GEMM: the kernel and its launch planner.

Rows are output pixels, columns the output channels of one group, the reduction runs over kernel taps and the group's
input channels. Input channels are innermost in memory, weights are [K, R, S, C/groups] contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Epilogue, Reach, Strides, Taps
from grouped_conv.kernels.device_code.epilogue import finish, row_offsets, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, decode_tile, shuffled, tap_bits
from grouped_conv.kernels.device_code.reduction import flat_reduction, tap_reduction
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig, tiles, total_trips
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch, power_of_two_divisor
from grouped_conv.kernels.launching.operands import (
    Operand,
    epilogue_arguments,
    input_shuffle_constants,
    is_dense,
    stride_integers,
)
from grouped_conv.kernels.launching.window import tap_mode, window_constant, window_extent
from grouped_conv.kernels.values.problem import ConvProblem

SHORT_LOOP = 8
"""Trips up to which the compiler must not know their number: it would unroll the loop, and on sm_90 clear the sums
after the `wgmma.fence` that orders it (found by executing the PTX)."""


@triton.jit
def implicit_gemm(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    pre_ptr,
    y_ptr,
    workspace_ptr,
    M,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    tiles_m,
    trips,
    total_trips,
    out_channels,
    stride_xn,
    stride_xh,
    stride_xw,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    stride_rn,
    stride_rc,
    stride_rh,
    stride_rw,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SWIZZLE_M: tl.constexpr,
    LOOP_ORDER: tl.constexpr,
    CACHE_A: tl.constexpr,
    X_ALIGN: tl.constexpr,
    WIDE_M: tl.constexpr,
    TAP_MODE: tl.constexpr,
    PRECISION: tl.constexpr,
    FINISH: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    DENSE_Y: tl.constexpr,
    DENSE_R: tl.constexpr,
):
    KERNEL_H: tl.constexpr = WINDOW.KERNEL_H
    KERNEL_W: tl.constexpr = WINDOW.KERNEL_W
    STRIDE_H: tl.constexpr = WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    PAD_H: tl.constexpr = WINDOW.PAD_H
    PAD_W: tl.constexpr = WINDOW.PAD_W
    DILATION_H: tl.constexpr = WINDOW.DILATION_H
    DILATION_W: tl.constexpr = WINDOW.DILATION_W
    SHUFFLE: tl.constexpr = FINISH.SHUFFLE
    OUT_CHANNELS: tl.constexpr = FINISH.OUT_CHANNELS
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * C_PER_GROUP
    EVEN_N: tl.constexpr = K_PER_GROUP % BLOCK_N == 0
    TILES_N: tl.constexpr = (K_PER_GROUP + BLOCK_N - 1) // BLOCK_N
    pid_m, pid_n, group, split = decode_tile(tiles_m, TILES_N, SPLIT_K, SWIZZLE_M)

    m, image, out_h, out_w = decode_pixels(pid_m, OUT_H, OUT_W, BLOCK_M, WIDE_M)
    row_ok = m < M
    ih0 = out_h.to(tl.int32) * STRIDE_H - PAD_H
    iw0 = out_w.to(tl.int32) * STRIDE_W - PAD_W
    x_offsets = image.to(tl.int64) * stride_xn + ih0.to(tl.int64) * stride_xh + iw0.to(tl.int64) * stride_xw
    x_rows = x_ptr + x_offsets  # [BLOCK_M]; read only where a tap is inside
    if INPUT_SHUFFLE == 1:
        x_rows += group.to(tl.int64) * C_PER_GROUP
    ih0 = tl.where(row_ok, ih0, OUTSIDE)
    TAPS: tl.constexpr = Taps(KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, TAP_MODE)
    reach = Reach(tap_bits(ih0, iw0, IN_H, IN_W, TAPS), ih0, iw0, IN_H, IN_W)

    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    col_ok = n < K_PER_GROUP
    w_cols = w_ptr + (group.to(tl.int64) * K_PER_GROUP + n) * DEPTH  # [BLOCK_N]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if LOOP_ORDER == "flat":
        acc = flat_reduction(
            acc, x_rows, w_cols, col_ok, reach, stride_xh, stride_xw, split, trips,
            total_trips, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, BLOCK_K, EVEN_N, TAPS, CACHE_A,
            PRECISION, NUM_STAGES, group, INPUT_SHUFFLE, IN_CHANNELS,
        )  # fmt: skip
    else:
        acc = tap_reduction(
            acc, x_rows, w_cols, col_ok, reach, stride_xh, stride_xw, split, trips,
            total_trips, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, BLOCK_K, EVEN_N,
            LOOP_ORDER == "taps_inner", X_ALIGN, TAPS, CACHE_A, PRECISION, NUM_STAGES,
        )  # fmt: skip

    channel = group * K_PER_GROUP + n
    if SHUFFLE * K_PER_GROUP == OUT_CHANNELS:  # a shuffle in as many groups as the convolution's: no division
        shuffled_channel = n * SHUFFLE + group
    else:
        shuffled_channel = shuffled(channel, SHUFFLE, OUT_CHANNELS)
    if SPLIT_K == 1:
        y_rows = row_offsets(m, image, out_h, out_w, Strides(stride_yn, 1, stride_yh, stride_yw), DENSE_Y)
        r_rows = y_rows
        if residual_ptr is not None:
            r_rows = row_offsets(m, image, out_h, out_w, Strides(stride_rn, 1, stride_rh, stride_rw), DENSE_R)
        finish(
            acc, Epilogue(scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc), y_rows, r_rows,
            row_ok, channel, col_ok, FINISH, shuffled_channel,
        )  # fmt: skip
    else:
        part = workspace_ptr + split.to(tl.int64) * M * out_channels  # [SPLIT_K, M, out_channels] in fp32
        store_tile(part, acc, m.to(tl.int64) * out_channels, channel, 1, row_ok, col_ok, FINISH.VECTOR)


def plan_implicit_gemm(problem: ConvProblem, config: ImplicitGemmConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem`; `operands` has the input with channels innermost and the packed weight."""
    x, weight, output = operands["input"], operands["weight"], operands["output"]
    _, m, _, _ = problem.gemm
    tiles_m, _, programs = tiles(problem, config)
    trips = math.ceil(total_trips(problem, config) / config.split_k)
    split = config.split_k > 1
    finishing = epilogue_arguments(problem, {} if split else operands)
    strides = (
        stride_integers("r", None if split else operands.get("residual")),
        stride_integers("y", None if split else output),
    )
    counts = {"trips": trips, "total_trips": total_trips(problem, config)}
    static = config.static_trips and trips > SHORT_LOOP
    wide_window = window_extent(problem, x) > INT32_MAX
    integers = [
        Integer.of("M", m),
        Integer.of("IN_H", problem.in_size[0]),
        Integer.of("IN_W", problem.in_size[1]),
        Integer.of("OUT_H", problem.out_size[0]),
        Integer.of("OUT_W", problem.out_size[1]),
        Integer.of("tiles_m", tiles_m),
        Integer.of("out_channels", problem.out_channels, stride=True),
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=wide_window, stride=True),
        Integer.of("stride_xw", x.strides[3], wide=wide_window, stride=True),
        *(() if static else (Integer.of(name, value) for name, value in counts.items())),
        *(integer for pair in strides for integer in pair.integers),
    ]
    buffers = [
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment),
        *finishing.buffers,
    ]
    if split:
        buffers.append(Buffer("workspace_ptr", "workspace", "float32"))
    constants = {
        "C_PER_GROUP": problem.c_per_group,
        "K_PER_GROUP": problem.k_per_group,
        "WINDOW": window_constant(problem),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        **(counts if static else {}),
        "SPLIT_K": config.split_k,
        "SWIZZLE_M": config.swizzle_m,
        "LOOP_ORDER": config.loop_order,
        "CACHE_A": config.cache_a,
        "X_ALIGN": min(power_of_two_divisor(x.strides[2]), power_of_two_divisor(x.strides[3])),
        "WIDE_M": m > INT32_MAX - config.block_m,
        "TAP_MODE": tap_mode(problem),
        "PRECISION": problem.precision,
        "NUM_STAGES": config.num_stages,
        **input_shuffle_constants(problem),
        "DENSE_Y": is_dense(problem, output),
        "DENSE_R": problem.epilogue.residual and is_dense(problem, operands["residual"]),
        **finishing.constants,
        **({} if split else {"workspace_ptr": None}),
        **{name: value for pair in strides for name, value in pair.constants.items()},
    }
    return Launch(implicit_gemm, config, (programs, 1, 1), tuple(buffers), tuple(integers), constants, trips)
