"""Forward grouped convolution as an implicit GEMM: the kernel and its launch planner.

Rows are output pixels, columns the output channels of one group, the reduction runs over kernel taps and the group's
input channels. Input channels are innermost in memory, weights are [K, R, S, C/groups] contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Epilogue, Reach, Strides, Taps
from grouped_conv.kernels.device_code.epilogue import finish, pixel_offsets, row_offsets, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, decode_tile, shuffled, tap_bits
from grouped_conv.kernels.device_code.reduction import Loop, Part, Source, Weights, flat_reduction, tap_reduction
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


class Tile(NamedTuple):
    """The tile of a program; WIDE_M where pixels are counted in 64 bits, DENSE_* where they follow each other."""

    BLOCK_M: int
    BLOCK_N: int
    SPLIT_K: int
    SWIZZLE_M: int
    WIDE_M: bool
    DENSE_Y: bool
    DENSE_R: bool


@triton.jit
def implicit_gemm(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr, workspace_ptr,
    M, IN_H, IN_W, OUT_H, OUT_W, tiles_m, trips, total_trips, out_channels,
    stride_xn, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_rn, stride_rc, stride_rh, stride_rw,
    K_PER_GROUP: tl.constexpr, X_ALIGN: tl.constexpr, WINDOW: tl.constexpr, TAP_MODE: tl.constexpr,
    TILE: tl.constexpr, LOOP: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    DEPTH: tl.constexpr = WINDOW.KERNEL_H * WINDOW.KERNEL_W * LOOP.C_PER_GROUP
    TILES_N: tl.constexpr = (K_PER_GROUP + TILE.BLOCK_N - 1) // TILE.BLOCK_N
    TAPS: tl.constexpr = Taps(WINDOW.KERNEL_H, WINDOW.KERNEL_W, WINDOW.DILATION_H, WINDOW.DILATION_W, TAP_MODE)
    pid_m, pid_n, group, split = decode_tile(tiles_m, TILES_N, TILE.SPLIT_K, TILE.SWIZZLE_M)

    m, image, out_h, out_w = decode_pixels(pid_m, OUT_H, OUT_W, TILE.BLOCK_M, TILE.WIDE_M)
    row_ok = m < M
    ih0 = out_h.to(tl.int32) * WINDOW.STRIDE_H - WINDOW.PAD_H
    iw0 = out_w.to(tl.int32) * WINDOW.STRIDE_W - WINDOW.PAD_W
    x_rows = x_ptr + pixel_offsets(image, ih0, iw0, Strides(stride_xn, 1, stride_xh, stride_xw))  # [BLOCK_M]
    if LOOP.INPUT_SHUFFLE == 1:
        x_rows += group.to(tl.int64) * LOOP.C_PER_GROUP
    ih0 = tl.where(row_ok, ih0, OUTSIDE)
    source = Source(x_rows, stride_xh, stride_xw)
    reach = Reach(tap_bits(ih0, iw0, IN_H, IN_W, TAPS), ih0, iw0, IN_H, IN_W)

    n = pid_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
    col_ok = n < K_PER_GROUP
    weights = Weights(w_ptr + (group.to(tl.int64) * K_PER_GROUP + n) * DEPTH, col_ok)  # [BLOCK_N]

    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    if LOOP.ORDER == "flat":
        acc = flat_reduction(acc, source, weights, reach, Part(split, trips, total_trips), group, TAPS, LOOP)
    else:
        acc = tap_reduction(acc, source, weights, reach, Part(split, trips, total_trips), X_ALIGN, TAPS, LOOP)

    channel = group * K_PER_GROUP + n
    if FINISH.SHUFFLE * K_PER_GROUP == FINISH.OUT_CHANNELS:  # as many groups as the convolution's: no division
        shuffled_channel = n * FINISH.SHUFFLE + group
    else:
        shuffled_channel = shuffled(channel, FINISH.SHUFFLE, FINISH.OUT_CHANNELS)
    if TILE.SPLIT_K == 1:
        y_rows = row_offsets(m, image, out_h, out_w, Strides(stride_yn, 1, stride_yh, stride_yw), TILE.DENSE_Y)
        r_rows = y_rows
        if residual_ptr is not None:
            r_rows = row_offsets(m, image, out_h, out_w, Strides(stride_rn, 1, stride_rh, stride_rw), TILE.DENSE_R)
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
        "K_PER_GROUP": problem.k_per_group,
        "X_ALIGN": min(power_of_two_divisor(x.strides[2]), power_of_two_divisor(x.strides[3])),
        "WINDOW": window_constant(problem),
        "TAP_MODE": tap_mode(problem),
        "TILE": Tile(
            config.block_m,
            config.block_n,
            config.split_k,
            config.swizzle_m,
            WIDE_M=m > INT32_MAX - config.block_m,
            DENSE_Y=is_dense(problem, output),
            DENSE_R=problem.epilogue.residual and is_dense(problem, operands["residual"]),
        ),
        "LOOP": Loop(
            config.loop_order,
            problem.c_per_group,
            config.block_k,
            EVEN_N=problem.k_per_group % config.block_n == 0,
            CACHE_A=config.cache_a,
            PRECISION=problem.precision,
            NUM_STAGES=config.num_stages,
            **input_shuffle_constants(problem),
        ),
        **(counts if static else {}),
        **finishing.constants,
        **({} if split else {"workspace_ptr": None}),
        **{name: value for pair in strides for name, value in pair.constants.items()},
    }
    return Launch(implicit_gemm, config, (programs, 1, 1), tuple(buffers), tuple(integers), constants, trips)
