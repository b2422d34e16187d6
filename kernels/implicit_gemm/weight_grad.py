"""The gradient of the weight, for equal groups: the kernel and its launch planner.

Rows are output channels of one group, columns its weights in (kernel row, kernel column, channel) order, the reduction
runs over output pixels. A program sums one part of the pixels and stores it in a workspace; `gradient_reduce` adds the
parts. Where a pixel's window is in the input is read from a table (`pixel_table`) or computed; then rows and images
are found by multiplication: a division per step would double the loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.epilogue import store_tile
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import OUTSIDE, inside, shuffled
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.implicit_gemm.pixel_table import (
    TABLE,
    entry_has,
    entry_offset,
    offset_divisor,
    plan_pixel_table,
    taps_needed,
)
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import (
    WeightGradConfig,
    pixels,
    pixels_per_split,
    table_entries,
    tiles,
)
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments, is_wide
from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import FLOAT32_VECTOR, Operand, input_shuffle_constants, is_dense
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def quotient(n, divisor, magic, shift, WIDE: tl.constexpr):
    """n // divisor for n below 2^31 by a multiplication (`magic_division`), otherwise by division."""
    if WIDE:
        return n // divisor
    else:
        return (tl.umulhi((2 * n).to(tl.uint32), magic.to(tl.uint32)) >> shift.to(tl.uint32)).to(tl.int32)


@triton.jit
def places(m, row, image, OUT_H, OUT_W, strides):
    """Offset of each output pixel's first channel: three products, none of them waits for a remainder."""
    return m * strides.w + row * (strides.h - OUT_W * strides.w) + image * (strides.n - OUT_H * strides.h)


class Group(NamedTuple):
    """Channels of a group before and after, and the shuffle of the input's channels."""

    C_PER_GROUP: int
    K_PER_GROUP: int
    INPUT_SHUFFLE: int
    IN_CHANNELS: int


class Tile(NamedTuple):
    """The tile and how it is read.

    Attributes:
        VECTOR: fp32 sums per store.
        DENSE_G, DENSE_K: whether pixels of the gradient and of the known follow each other in memory.
        EVEN_M: whether all steps have whole pixels.
        WIDE: whether offsets take 64 bits.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    NUM_STAGES: int
    VECTOR: int
    DENSE_G: bool
    DENSE_K: bool
    EVEN_M: bool
    WIDE: bool


@triton.jit
def weight_grad(
    dy_ptr, known_ptr, x_ptr, table_ptr, workspace_ptr,
    M, part, IN_H, IN_W, OUT_H, OUT_W, splits, out_channels, magic_h, shift_h, magic_w, shift_w,
    stride_gn, stride_gh, stride_gw,
    stride_kn, stride_kh, stride_kw,
    stride_xn, stride_xh, stride_xw,
    WINDOW: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, DERIVATIVE: tl.constexpr,
    PRECISION: tl.constexpr, TABLE_DIVISOR: tl.constexpr,
):  # fmt: skip
    DEPTH: tl.constexpr = WINDOW.KERNEL_H * WINDOW.KERNEL_W * GROUP.C_PER_GROUP
    TILES_M: tl.constexpr = (GROUP.K_PER_GROUP + TILE.BLOCK_M - 1) // TILE.BLOCK_M
    TILES_N: tl.constexpr = (DEPTH + TILE.BLOCK_N - 1) // TILE.BLOCK_N
    pid = tl.program_id(0)
    pid_n = pid % TILES_N
    pid_m = pid // TILES_N % TILES_M
    split = pid // (TILES_N * TILES_M) % splits
    group = pid // (TILES_N * TILES_M) // splits

    row = pid_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    row_ok = row < GROUP.K_PER_GROUP
    channel = group * GROUP.K_PER_GROUP + row
    g_channels = dy_ptr + shuffled(channel, DERIVATIVE.SHUFFLE, DERIVATIVE.OUT_CHANNELS)
    known_channel = shuffled(channel, DERIVATIVE.SHUFFLE_KNOWN, DERIVATIVE.OUT_CHANNELS)

    column = pid_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
    col_ok = column < DEPTH
    tap = column // GROUP.C_PER_GROUP
    down = (
        tap // WINDOW.KERNEL_W
    ) * WINDOW.DILATION_H - WINDOW.PAD_H  # from an output pixel's first row to the tap's, [TILE.BLOCK_N]
    right = (tap % WINDOW.KERNEL_W) * WINDOW.DILATION_W - WINDOW.PAD_W
    in_channel = group * GROUP.C_PER_GROUP + column % GROUP.C_PER_GROUP
    if GROUP.INPUT_SHUFFLE > 1:  # a shuffle in C / s groups undoes one in s
        in_channel = shuffled(in_channel, GROUP.IN_CHANNELS // GROUP.INPUT_SHUFFLE, GROUP.IN_CHANNELS)
    x_cols = x_ptr + (down * stride_xh + right * stride_xw + in_channel)
    down = tl.where(col_ok, down, OUTSIDE)
    needed = taps_needed(tap // WINDOW.KERNEL_W, tap % WINDOW.KERNEL_W, col_ok)[None, :]

    begin = split.to(tl.int64) * part if TILE.WIDE else split * part
    end = tl.minimum(begin + part, M)
    offs_k = tl.arange(0, TILE.BLOCK_K)
    row_end = tl.where(row_ok, end, 0)[:, None]  # one comparison for both bounds of a tile of the gradient
    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    if table_ptr is not None:  # read a step ahead: the copies of x wait for no load, and need no stage for one
        ahead = tl.load(table_ptr + (tl.minimum(begin, end) + offs_k))
    for first in tl.range(begin, end, TILE.BLOCK_K, num_stages=TILE.NUM_STAGES):
        m = first + offs_k
        if table_ptr is None or not (TILE.DENSE_G and TILE.DENSE_K):
            row_of = quotient(m, OUT_W, magic_w, shift_w, TILE.WIDE)  # output rows, counted through all images
            image = quotient(row_of, OUT_H, magic_h, shift_h, TILE.WIDE)
        known_ptrs = None
        if DERIVATIVE.ACTIVATION != "none":
            k_rows = m * stride_kw
            if not TILE.DENSE_K:
                k_rows = places(m, row_of, image, OUT_H, OUT_W, Strides(stride_kn, 1, stride_kh, stride_kw))
            # its pointer is added last: kept across the loop per channel, 64-bit pointers spill on some tiles
            known_ptrs = known_ptr + (k_rows[None, :] + known_channel[:, None])
        g_rows = m * stride_gw
        if not TILE.DENSE_G:
            g_rows = places(m, row_of, image, OUT_H, OUT_W, Strides(stride_gn, 1, stride_gh, stride_gw))
        g_mask = m[None, :] < row_end
        if TILE.EVEN_M:
            g_mask = None if GROUP.K_PER_GROUP % TILE.BLOCK_M == 0 else row_ok[:, None]
        # [BLOCK_M, BLOCK_K] through transposed pointers: transposing a loaded tile costs the asynchronous copy
        a = load_gradient(g_channels[:, None] + g_rows[None, :], known_ptrs, g_mask, None, DERIVATIVE)
        if table_ptr is not None:
            entry = ahead
            ahead = tl.load(table_ptr + (first + TILE.BLOCK_K + offs_k))
            x_rows = entry_offset(entry, TABLE_DIVISOR)
            mask = entry_has(entry, needed)
        else:
            in_h = ((row_of - image * OUT_H) * WINDOW.STRIDE_H).to(tl.int32)
            if not TILE.EVEN_M:
                in_h = tl.where(m < end, in_h, OUTSIDE)
            in_w = ((m - row_of * OUT_W) * WINDOW.STRIDE_W).to(tl.int32)
            steps = Strides(stride_xn, 1, WINDOW.STRIDE_H * stride_xh, WINDOW.STRIDE_W * stride_xw)
            x_rows = places(m, row_of, image, OUT_H, OUT_W, steps)
            mask = inside(in_h[:, None] + down[None, :], IN_H) & inside(in_w[:, None] + right[None, :], IN_W)
        b = tl.load(x_cols[None, :] + x_rows[:, None], mask=mask, other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = multiply_add(a, b, acc, PRECISION)

    target = workspace_ptr + split.to(tl.int64) * out_channels * DEPTH
    store_tile(target, acc, channel.to(tl.int64) * DEPTH, column, 1, row_ok, col_ok, TILE.VECTOR)


def plan_weight_grad(problem: ConvProblem, config: WeightGradConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch that leaves partial sums in `workspace`, `[splits, K, R, S, C / groups]` in fp32.

    It reads `pixel_table` where `reads_table` says so.
    """
    x = operands["input"]
    _, _, programs = tiles(problem, config)
    part = pixels_per_split(problem, config)
    wide = is_wide(problem, operands)
    table = reads_table(problem, config, operands)
    loading = gradient_arguments(problem, operands, wide=wide)
    integers = (
        Integer.of("M", pixels(problem)),
        Integer.of("part", part),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("splits", config.splits),
        Integer.of("out_channels", problem.out_channels, stride=True),
        *(
            integer
            for axis, size in zip("hw", problem.out_size, strict=True)
            for integer in _division_integers(axis, size)
        ),
        *loading.integers,
        *(
            Integer.of(f"stride_x{axis}", x.strides[index], wide=wide, stride=True)
            for index, axis in ((0, "n"), (2, "h"), (3, "w"))
        ),
    )
    constants = {
        "WINDOW": window_constant(problem),
        "GROUP": Group(problem.c_per_group, problem.k_per_group, **input_shuffle_constants(problem)),
        "TILE": Tile(
            config.block_m,
            config.block_n,
            config.block_k,
            config.num_stages,
            VECTOR=FLOAT32_VECTOR if problem.taps * problem.c_per_group % FLOAT32_VECTOR == 0 else 1,
            DENSE_G=is_dense(problem, operands["grad_output"]),
            DENSE_K=problem.epilogue.activation == "none" or is_dense(problem, operands["known"]),
            EVEN_M=pixels(problem) % config.block_k == 0,
            WIDE=wide,
        ),
        "PRECISION": problem.precision,
        "TABLE_DIVISOR": offset_divisor(x, problem.stride),
        **({} if table else {"table_ptr": None}),
        **loading.constants,
    }
    buffers = (
        *loading.buffers,
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        *((Buffer("table_ptr", TABLE, "int64"),) if table else ()),
        Buffer("workspace_ptr", "workspace", "float32"),
    )
    return Launch(weight_grad, config, (programs, 1, 1), buffers, integers, constants, math.ceil(part / config.block_k))


def reads_table(problem: ConvProblem, config: WeightGradConfig, operands: Mapping[str, Operand]) -> bool:
    """Does this call read a table of pixels? Its offsets have 32 bits: beyond them pixels are found as without one."""
    return config.pixel_table and not is_wide(problem, operands)


def plan_first_pass(
    problem: ConvProblem, config: WeightGradConfig, operands: Mapping[str, Operand]
) -> tuple[list[Launch], dict[str, int]]:
    """(launches before the kernel, int64 elements of each buffer they fill)."""
    if not reads_table(problem, config, operands):
        return [], {}
    return [plan_pixel_table(problem, config, operands["input"])], {TABLE: table_entries(problem, config)}


def magic_division(divisor: int) -> tuple[int, int]:
    """(magic, shift) with `n // divisor == (2 * n * magic >> 32) >> shift` for 0 <= n < 2^31.

    Granlund and Montgomery, "Division by invariant integers using multiplication" (PLDI 1994), for 31-bit numerators,
    whose multiplier fits 32 bits.
    """
    shift = (divisor - 1).bit_length()
    return -(-(1 << (31 + shift)) // divisor), shift


def _division_integers(axis: str, size: int) -> tuple[Integer, Integer]:
    magic, shift = magic_division(size)
    return Integer.of(f"magic_{axis}", magic, wide=True), Integer.of(f"shift_{axis}", shift)
