"""Forward convolution of unequal, overlapping or explicitly listed groups in one launch: the kernel and its planner.

An implicit GEMM whose program reads from a table which channels it sees and makes. The reduction walks (kernel row,
kernel column, channel) as one flat index of the group's own depth; a tap is found by multiplying with a reciprocal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Epilogue, Reach, Strides, Taps
from grouped_conv.kernels.device_code.epilogue import finish, row_offsets
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, tap_bits, tap_mask
from grouped_conv.kernels.device_code.reduction import Source, multiply_add
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, epilogue_arguments, is_dense, stride_integers
from grouped_conv.kernels.launching.window import tap_mode, window_constant, window_extent
from grouped_conv.kernels.ragged.forward_rules import ROW, RaggedConfig, last_tap, tiles, traits, trips
from grouped_conv.kernels.values.problem import ConvProblem

_ROW = tl.constexpr(ROW)


class GroupDepth(NamedTuple):
    """Channels of a program's group, their reciprocal (`tap_of`), and the length of its reduction."""

    width: tl.tensor
    reciprocal: tl.tensor
    depth: tl.tensor


class Tile(NamedTuple):
    """The tile of a program; WIDE_M where pixels are counted in 64 bits, DENSE_* where they follow each other."""

    BLOCK_M: int
    BLOCK_N: int
    WIDE_M: bool
    DENSE_Y: bool
    DENSE_R: bool


class RaggedLoop(NamedTuple):
    """How the reduction is walked; MASK_K and CLAMP where taps past the last have no bit of their own."""

    BLOCK_K: int
    MASK_K: bool
    CLAMP: bool
    CACHE_A: str
    PRECISION: str
    NUM_STAGES: int


@triton.jit
def ragged(
    x_ptr, w_ptr, table_ptr, index_ptr, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr,
    M, IN_H, IN_W, OUT_H, OUT_W, tiles_m,
    stride_xn, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_rn, stride_rc, stride_rh, stride_rw,
    WINDOW: tl.constexpr, TAP_MODE: tl.constexpr, TILE: tl.constexpr, LOOP: tl.constexpr, FINISH: tl.constexpr,
    IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)  # pixel tiles vary fastest: consecutive programs share weights
    begin, width, reciprocal, first_out, count, w_begin = load_row(
        table_ptr + (pid // tiles_m) * _ROW, IN_ALIGN, WIDTH_ALIGN, OUT_ALIGN
    )

    m, image, out_h, out_w = decode_pixels(pid % tiles_m, OUT_H, OUT_W, TILE.BLOCK_M, TILE.WIDE_M)
    row_ok = m < M
    ih0 = out_h.to(tl.int32) * WINDOW.STRIDE_H - WINDOW.PAD_H
    iw0 = out_w.to(tl.int32) * WINDOW.STRIDE_W - WINDOW.PAD_W
    x_rows = x_ptr + (image.to(tl.int64) * stride_xn + ih0.to(tl.int64) * stride_xh + iw0.to(tl.int64) * stride_xw)
    index = index_ptr
    if index_ptr is None:
        x_rows += begin  # [BLOCK_M]; read only where a tap is inside
    else:
        index = index_ptr + begin
    ih0 = tl.where(row_ok, ih0, OUTSIDE)
    TAPS: tl.constexpr = Taps(WINDOW.KERNEL_H, WINDOW.KERNEL_W, WINDOW.DILATION_H, WINDOW.DILATION_W, TAP_MODE)
    reach = Reach(tap_bits(ih0, iw0, IN_H, IN_W, TAPS), ih0, iw0, IN_H, IN_W)

    n = tl.arange(0, TILE.BLOCK_N)
    col_ok = n < count
    depth = tl.multiple_of(width * (WINDOW.KERNEL_H * WINDOW.KERNEL_W), WIDTH_ALIGN)
    # [BLOCK_N]; columns past the group's last repeat it: cheaper than a mask in the loop, and never stored
    w_cols = w_ptr + (w_begin + tl.minimum(n, count - 1).to(tl.int64) * depth)

    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    source = Source(x_rows, stride_xh, stride_xw)
    acc = ragged_reduction(
        acc, source, w_cols, index, reach, GroupDepth(width, reciprocal, depth), IN_ALIGN, WIDTH_ALIGN, TAPS, LOOP
    )
    y_rows = row_offsets(m, image, out_h, out_w, Strides(stride_yn, 1, stride_yh, stride_yw), TILE.DENSE_Y)
    r_rows = None
    if residual_ptr is not None:
        r_rows = row_offsets(m, image, out_h, out_w, Strides(stride_rn, 1, stride_rh, stride_rw), TILE.DENSE_R)
    finish(
        acc, Epilogue(scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc), y_rows, r_rows, row_ok,
        first_out + n, col_ok, FINISH,
    )  # fmt: skip


@triton.jit
def load_row(row_ptr, IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr):
    """A table row with what is known of its divisibility: a bound that is not known to be even narrows masked loads."""
    begin = tl.multiple_of(tl.load(row_ptr), IN_ALIGN)
    width = tl.multiple_of(tl.load(row_ptr + 1).to(tl.int32), WIDTH_ALIGN)
    reciprocal = tl.load(row_ptr + 2).to(tl.uint32)
    first_out = tl.multiple_of(tl.load(row_ptr + 3).to(tl.int32), OUT_ALIGN)
    count = tl.multiple_of(tl.load(row_ptr + 4).to(tl.int32), OUT_ALIGN)
    w_begin = tl.multiple_of(tl.load(row_ptr + 5), WIDTH_ALIGN)
    return begin, width, reciprocal, first_out, count, w_begin


@triton.jit
def tap_of(k, reciprocal, ALIGN: tl.constexpr):
    """k // width for the width whose reciprocal is given; ALIGN consecutive k have the same tap."""
    tap = tl.umulhi((2 * k).to(tl.uint32), reciprocal)
    return tl.max_constancy(tap, ALIGN).to(tl.int32)  # said before the cast, which is folded away with what it is told


@triton.jit
def ragged_reduction(
    acc, source, w_cols, index, reach, group, IN_ALIGN: tl.constexpr, WIDTH_ALIGN: tl.constexpr, TAPS: tl.constexpr,
    LOOP: tl.constexpr,
):  # fmt: skip
    """Acc + x[rows, k] * w[k, cols] over the group's `depth` flat indices k."""
    BLOCK_K: tl.constexpr = LOOP.BLOCK_K
    PRECISION: tl.constexpr = LOOP.PRECISION
    offs_k = tl.arange(0, BLOCK_K)
    for k0 in tl.range(0, group.depth, BLOCK_K, num_stages=LOOP.NUM_STAGES):
        k = k0 + offs_k
        k_ok = k < group.depth
        tap = tap_of(k, group.reciprocal, WIDTH_ALIGN)
        row = tap // TAPS.COLUMNS
        column = tap % TAPS.COLUMNS
        channel = tl.max_contiguous(tl.multiple_of(k - tap * group.width, WIDTH_ALIGN), WIDTH_ALIGN)
        if index is not None:
            channel = tl.load(index + channel)  # k modulo the group's width: inside its list even past the last tap
            channel = tl.max_contiguous(tl.multiple_of(channel, IN_ALIGN), IN_ALIGN)
        offset = row * (TAPS.DOWN * source.stride_h) + column * (TAPS.RIGHT * source.stride_w) + channel
        if LOOP.CLAMP and TAPS.MODE != "direct":
            tap = tap & 31
            row = row & 15
        mask = tap_mask(reach, tap[None, :], row[None, :], column[None, :], TAPS)
        if LOOP.MASK_K:
            mask = mask & k_ok[None, :]
        # [BLOCK_M, BLOCK_K]
        a = tl.load(source.rows[:, None] + offset[None, :], mask=mask, other=0.0, cache_modifier=LOOP.CACHE_A)
        # [BLOCK_K, BLOCK_N]
        b = tl.load(w_cols[None, :] + k[:, None], mask=k_ok[:, None], other=0.0)
        acc = multiply_add(a, b, acc, PRECISION)
    return acc


def plan_ragged(problem: ConvProblem, config: RaggedConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem`.

    Args:
        operands: `input` with channels innermost, `weight` as one flat storage (`ragged_rules.weight_offsets`), and
            the epilogue's. The launch also reads the buffers `tile_table`, and `channel_index` where the
            layout's groups are not consecutive channels.
    """
    x, weight, output = operands["input"], operands["weight"], operands["output"]
    tiles_m, _, programs = tiles(problem, config)
    finishing = epilogue_arguments(problem, operands)
    strides = stride_integers("r", operands.get("residual")), stride_integers("y", output)
    known = traits(problem.layout)
    wide_window = window_extent(problem, x) > INT32_MAX
    integers = (
        Integer.of("M", _pixels(problem)),
        Integer.of("IN_H", problem.in_size[0]),
        Integer.of("IN_W", problem.in_size[1]),
        Integer.of("OUT_H", problem.out_size[0]),
        Integer.of("OUT_W", problem.out_size[1]),
        Integer.of("tiles_m", tiles_m),
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=wide_window, stride=True),
        Integer.of("stride_xw", x.strides[3], wide=wide_window, stride=True),
        *(integer for pair in strides for integer in pair.integers),
    )
    buffers = (
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment),
        Buffer("table_ptr", "tile_table", "int64"),
        *([Buffer("index_ptr", "channel_index", "int32")] if known.gather else []),
        *finishing.buffers,
    )
    constants = {
        **({} if known.gather else {"index_ptr": None}),
        "WINDOW": window_constant(problem),
        "TAP_MODE": tap_mode(problem),
        "TILE": Tile(
            config.block_m,
            config.block_n,
            WIDE_M=_pixels(problem) > INT32_MAX - config.block_m,
            DENSE_Y=is_dense(problem, output),
            DENSE_R=problem.epilogue.residual and is_dense(problem, operands["residual"]),
        ),
        "LOOP": _loop(problem, config),
        "IN_ALIGN": known.in_align,
        "WIDTH_ALIGN": known.width_align,
        "OUT_ALIGN": known.out_align,
        **finishing.constants,
        **{name: value for pair in strides for name, value in pair.constants.items()},
    }
    longest = max(trips(problem, config, group) for group in range(problem.groups))
    return Launch(ragged, config, (programs, 1, 1), buffers, integers, constants, longest)


def _pixels(problem: ConvProblem) -> int:
    return problem.batch * problem.out_size[0] * problem.out_size[1]


def _loop(problem: ConvProblem, config: RaggedConfig) -> RaggedLoop:
    mode, kernel_w = tap_mode(problem), problem.kernel_size[1]
    return RaggedLoop(
        config.block_k,
        MASK_K=not _has_a_bit(last_tap(problem, config, prepared=False), mode, kernel_w),
        CLAMP=not _has_a_bit(last_tap(problem, config, prepared=True), mode, kernel_w),
        CACHE_A=config.cache_a,
        PRECISION=problem.precision,
        NUM_STAGES=config.num_stages,
    )


def _has_a_bit(tap: int, mode: str, kernel_w: int) -> bool:
    """Has `tap` a bit of its own in a row's word, so that one past the last tap reads as outside?"""
    if mode == "word":
        return tap <= 31
    return mode == "row_column" and tap // kernel_w <= 15
