"""Forward grouped convolution as an implicit GEMM: the kernel and its launch planner.

Rows are output pixels, columns the output channels of one group, the reduction runs over kernel taps and the group's
input channels. Input channels are innermost in memory, weights are [K, R, S, C/groups] contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.epilogue import finish, row_offsets, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, decode_tile, shuffled, tap_bits
from grouped_conv.kernels.device_code.reduction import flat_reduction, tap_reduction
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig, tiles, total_trips
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch, power_of_two_divisor
from grouped_conv.kernels.launching.operands import (
    FLOAT32_VECTOR,
    Operand,
    epilogue_arguments,
    is_dense,
    shuffle_constants,
    store_vector,
    stride_integers,
)
from grouped_conv.kernels.launching.window import window_constants
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
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
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
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    VECTOR: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    SHUFFLE: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    DENSE_Y: tl.constexpr,
    DENSE_R: tl.constexpr,
):
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
    bits = tap_bits(ih0, iw0, IN_H, IN_W, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, TAP_MODE)

    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    col_ok = n < K_PER_GROUP
    w_cols = w_ptr + (group.to(tl.int64) * K_PER_GROUP + n) * DEPTH  # [BLOCK_N]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if LOOP_ORDER == "flat":
        acc = flat_reduction(
            acc, x_rows, w_cols, col_ok, bits, ih0, iw0, IN_H, IN_W, stride_xh, stride_xw, split, trips,
            total_trips, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, BLOCK_K, EVEN_N, TAP_MODE, CACHE_A,
            PRECISION, NUM_STAGES, group, INPUT_SHUFFLE, IN_CHANNELS,
        )  # fmt: skip
    else:
        acc = tap_reduction(
            acc, x_rows, w_cols, col_ok, bits, ih0, iw0, IN_H, IN_W, stride_xh, stride_xw, split, trips,
            total_trips, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, BLOCK_K, EVEN_N,
            LOOP_ORDER == "taps_inner", X_ALIGN, TAP_MODE, CACHE_A, PRECISION, NUM_STAGES,
        )  # fmt: skip

    channel = group * K_PER_GROUP + n
    if SHUFFLE * K_PER_GROUP == OUT_CHANNELS:  # a shuffle in as many groups as the convolution's: no division
        shuffled_channel = n * SHUFFLE + group
    else:
        shuffled_channel = shuffled(channel, SHUFFLE, OUT_CHANNELS)
    if SPLIT_K == 1:
        y_rows = row_offsets(m, image, out_h, out_w, stride_yn, stride_yh, stride_yw, DENSE_Y)
        r_rows = y_rows
        if residual_ptr is not None:
            r_rows = row_offsets(m, image, out_h, out_w, stride_rn, stride_rh, stride_rw, DENSE_R)
        finish(
            acc, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr, image, out_h, out_w, channel, row_ok, col_ok,
            stride_yn, stride_yc, stride_yh, stride_yw, stride_rn, stride_rc, stride_rh, stride_rw, ACTIVATION,
            NEGATIVE_SLOPE, VECTOR, SHUFFLE, OUT_CHANNELS, shuffled_channel, y_rows, r_rows,
        )  # fmt: skip
    else:
        part = workspace_ptr + split.to(tl.int64) * M * out_channels  # [SPLIT_K, M, out_channels] in fp32
        store_tile(part, acc, m.to(tl.int64) * out_channels, channel, 1, row_ok, col_ok, VECTOR)


def tap_mode(problem: ConvProblem) -> str:
    """How a row remembers which taps are inside: one bit per tap, row and column bits, or comparisons in the loop."""
    if problem.taps <= 31:
        return "word"
    return "row_column" if max(problem.kernel_size) <= 15 else "direct"


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
        **window_constants(problem),
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
        **shuffle_constants(problem),
        "DENSE_Y": is_dense(problem, output),
        "DENSE_R": problem.epilogue.residual and is_dense(problem, operands["residual"]),
        **finishing.constants,
        "VECTOR": FLOAT32_VECTOR if split else store_vector(problem, output),
        **({} if split else {"workspace_ptr": None}),
        **{name: value for pair in strides for name, value in pair.constants.items()},
    }
    return Launch(implicit_gemm, config, (programs, 1, 1), tuple(buffers), tuple(integers), constants, trips)


def window_extent(problem: ConvProblem, x: Operand) -> int:
    """Elements between the first and the last value one output pixel reads; what the loop's offsets must hold."""
    reach = [d * (k - 1) for d, k in zip(problem.dilation, problem.kernel_size, strict=True)]
    return (
        (reach[0] + problem.dilation[0]) * x.strides[2]
        + (reach[1] + problem.dilation[1]) * x.strides[3]
        + problem.in_channels
    )
