"""Forward convolution of many thin groups: adjacent groups packed block-diagonally into one multiply per tap.

Input channels are innermost in memory, weights are [K, R, S, C/groups] contiguous. A program keeps the weights of its
pack and walks tiles of output pixels. Non-finite values stay in their group: see `packed_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, epilogue_arguments, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig, block_k, block_n, grid, isolates, programs
from grouped_conv.kernels.packed.sums import (
    finish_pixels,
    first_strips,
    first_sums,
    next_strips,
    pack_columns,
    per_channel,
    resident_weights,
    strip_products,
    tap_products,
    window_start,
)
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def recompute(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    pre_ptr,
    y_ptr,
    images,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    in_channels,
    out_channels,
    pack,
    program,
    tiles_each,
    strips_w,
    step_n,
    step_h,
    step_w,
    stride_xn,
    stride_xh,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_rn,
    stride_rc,
    stride_rh,
    STRIDE_XW: tl.constexpr,
    STRIDE_YW: tl.constexpr,
    STRIDE_RW: tl.constexpr,
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
    IN_SHUFFLE: tl.constexpr,
    OUT_SHUFFLE: tl.constexpr,
    PACK: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRIP: tl.constexpr,
    WIDE_M: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """All of a program's tiles once more, each group from its own channels only.

    Its indices are made anew from a zero that the compiler cannot see through, so that the loop before it does not
    hold them in registers. It is made of `images`: that a sum is NaN tells the compiler that `tiles_each` is positive.
    """
    zero = (images >> 31) * 16
    taps = KERNEL_H * KERNEL_W + (images >> 31) * strips_w  # a count that is known is unrolled, and spills
    pack += zero
    memory, _, index, member_k, column_ok = pack_columns(
        pack, in_channels, PACK, C_PER_GROUP, IN_SHUFFLE, EVEN_K, BLOCK_K, zero
    )
    stored, channel, _, member_n, channel_ok = pack_columns(
        pack, out_channels, PACK, K_PER_GROUP, OUT_SHUFFLE, EVEN_N, BLOCK_N, zero
    )
    diagonal = (member_k[:, None] == member_n[None, :]) & column_ok[:, None] & channel_ok[None, :]
    w_offsets = (channel * (KERNEL_H * KERNEL_W * C_PER_GROUP))[None, :] + index[:, None]
    x_pack = x_ptr + memory[None, :]
    scale = None
    bias = None
    if scale_ptr is not None:  # Triton 3.6 has no functions that return None: not decided inside
        scale = per_channel(scale_ptr, channel, channel_ok)
    if bias_ptr is not None:
        bias = per_channel(bias_ptr, channel, channel_ok)
    start = first_sums(bias, scale, BLOCK_M, BLOCK_N)
    image, out_h, strip_w = first_strips(program, OUT_H, strips_w, tiles_each, BLOCK_M, WIDE_M, zero)
    for _ in tl.range(0, tiles_each, num_stages=1):
        for u in tl.range(0, STRIP, num_stages=1):
            out_w = strip_w * STRIP + u
            ih0, iw0, offset = window_start(
                image, out_h, out_w, images, stride_xn, stride_xh, STRIDE_XW, STRIDE_H, STRIDE_W, PAD_H, PAD_W
            )
            acc = start
            for member in tl.range(0, PACK, num_stages=1):
                own = tap_products(
                    start, x_pack + offset[:, None], column_ok & (member_k == member), w_ptr, w_offsets, diagonal, taps,
                    ih0, iw0, IN_H, IN_W, stride_xh, STRIDE_XW, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W,
                    PRECISION,
                )  # fmt: skip
                acc = tl.where((member_n == member)[None, :], own, acc)
            y_rows = pixel_offsets(image, out_h, out_w, Strides(stride_yn, 1, stride_yh, STRIDE_YW))
            r_rows = y_rows
            if residual_ptr is not None:
                r_rows = pixel_offsets(image, out_h, out_w, Strides(stride_rn, 1, stride_rh, STRIDE_RW))
            finish_pixels(
                acc, scale, bias, residual_ptr, pre_ptr, y_ptr, r_rows, y_rows, channel, stored,
                (image < images) & (out_w < OUT_W), channel_ok, stride_yc, stride_rc, ACTIVATION, NEGATIVE_SLOPE,
                VECTOR,
            )  # fmt: skip
        image, out_h, strip_w = next_strips(image, out_h, strip_w, OUT_H, strips_w, step_n, step_h, step_w)


@triton.jit
def packed_groups(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    pre_ptr,
    y_ptr,
    images,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    in_channels,
    out_channels,
    packs,
    tiles_each,
    strips_w,
    step_n,
    step_h,
    step_w,
    stride_xn,
    stride_xh,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_rn,
    stride_rc,
    stride_rh,
    STRIDE_XW: tl.constexpr,
    STRIDE_YW: tl.constexpr,
    STRIDE_RW: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    IN_SHUFFLE: tl.constexpr,
    OUT_SHUFFLE: tl.constexpr,
    PACK: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRIP: tl.constexpr,
    RESIDENT: tl.constexpr,
    AHEAD: tl.constexpr,
    ISOLATE: tl.constexpr,
    WIDE_M: tl.constexpr,
    PRECISION: tl.constexpr,
    FINISH: tl.constexpr,
):
    KERNEL_H: tl.constexpr = WINDOW.KERNEL_H
    KERNEL_W: tl.constexpr = WINDOW.KERNEL_W
    STRIDE_H: tl.constexpr = WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    PAD_H: tl.constexpr = WINDOW.PAD_H
    PAD_W: tl.constexpr = WINDOW.PAD_W
    DILATION_H: tl.constexpr = WINDOW.DILATION_H
    DILATION_W: tl.constexpr = WINDOW.DILATION_W
    ACTIVATION: tl.constexpr = FINISH.ACTIVATION
    NEGATIVE_SLOPE: tl.constexpr = FINISH.NEGATIVE_SLOPE
    VECTOR: tl.constexpr = FINISH.VECTOR
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    pid = tl.program_id(0)
    pack = pid % packs
    program = pid // packs
    memory, _, index, member_k, column_ok = pack_columns(
        pack, in_channels, PACK, C_PER_GROUP, IN_SHUFFLE, EVEN_K, BLOCK_K
    )
    stored, channel, _, member_n, channel_ok = pack_columns(
        pack, out_channels, PACK, K_PER_GROUP, OUT_SHUFFLE, EVEN_N, BLOCK_N
    )
    diagonal = (member_k[:, None] == member_n[None, :]) & column_ok[:, None] & channel_ok[None, :]
    w_offsets = (channel * (TAPS * C_PER_GROUP))[None, :] + index[:, None]  # [BLOCK_K, BLOCK_N]
    x_pack = x_ptr + memory[None, :]
    weights = ()
    if RESIDENT:
        weights = resident_weights(w_ptr, w_offsets, diagonal, TAPS, C_PER_GROUP)
    scale = None
    bias = None
    if scale_ptr is not None:  # Triton 3.6 has no functions that return None: not decided inside
        scale = per_channel(scale_ptr, channel, channel_ok)
    if bias_ptr is not None:
        bias = per_channel(bias_ptr, channel, channel_ok)
    start = first_sums(bias, scale, BLOCK_M, BLOCK_N)
    image, out_h, strip_w = first_strips(program, OUT_H, strips_w, tiles_each, BLOCK_M, WIDE_M)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in tl.range(0, tiles_each, num_stages=1):
        ih0, iw0, offset = window_start(
            image, out_h, strip_w * STRIP, images, stride_xn, stride_xh, STRIDE_XW, STRIDE_H, STRIDE_W, PAD_H, PAD_W
        )
        x_rows = x_pack + offset[:, None]  # [BLOCK_M, BLOCK_K]; read only where a tap is inside
        if RESIDENT:
            sums = strip_products(
                start, x_rows, column_ok, weights, ih0, iw0, IN_H, IN_W, stride_xh, STRIDE_XW, KERNEL_H, KERNEL_W,
                STRIDE_W, DILATION_H, DILATION_W, STRIP, AHEAD, EVEN_K, PRECISION,
            )  # fmt: skip
        else:
            sums = (
                tap_products(
                    start, x_rows, column_ok, w_ptr, w_offsets, diagonal, KERNEL_H * KERNEL_W, ih0, iw0, IN_H, IN_W,
                    stride_xh, STRIDE_XW, C_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, PRECISION,
                ),
            )  # fmt: skip
        y_rows = pixel_offsets(image, out_h, strip_w * STRIP, Strides(stride_yn, 1, stride_yh, STRIDE_YW))
        r_rows = y_rows
        if residual_ptr is not None:
            r_rows = pixel_offsets(image, out_h, strip_w * STRIP, Strides(stride_rn, 1, stride_rh, STRIDE_RW))
        for u in tl.static_range(STRIP):
            if ISOLATE:
                total += sums[u]
            finish_pixels(
                sums[u], scale, bias, residual_ptr, pre_ptr, y_ptr, r_rows + u * STRIDE_RW, y_rows + u * STRIDE_YW,
                channel, stored, (image < images) & (strip_w < (OUT_W - u + STRIP - 1) // STRIP), channel_ok,
                stride_yc, stride_rc, ACTIVATION, NEGATIVE_SLOPE, VECTOR,
            )  # fmt: skip
        image, out_h, strip_w = next_strips(image, out_h, strip_w, OUT_H, strips_w, step_n, step_h, step_w)
    if ISOLATE:
        suspect = tl.sum(total)
        if suspect != suspect:
            tl.debug_barrier()
            recompute(
                x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr, images, IN_H, IN_W, OUT_H, OUT_W,
                in_channels, out_channels, pack, program, tiles_each, strips_w, step_n, step_h, step_w, stride_xn,
                stride_xh, stride_yn, stride_yc, stride_yh, stride_rn, stride_rc, stride_rh, STRIDE_XW, STRIDE_YW,
                STRIDE_RW, C_PER_GROUP, K_PER_GROUP, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H,
                DILATION_W, IN_SHUFFLE, OUT_SHUFFLE, PACK, EVEN_K, EVEN_N, BLOCK_M, BLOCK_N, BLOCK_K, STRIP,
                WIDE_M, PRECISION, ACTIVATION, NEGATIVE_SLOPE, VECTOR,
            )  # fmt: skip


def plan_packed_groups(problem: ConvProblem, config: PackedGroupsConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem`; `operands` has the input with channels innermost and the packed weight."""
    x, weight, output = operands["input"], operands["weight"], operands["output"]
    strips, tiles, packs = grid(problem, config)
    finishing = epilogue_arguments(problem, operands)
    residual = operands["residual"] if problem.epilogue.residual else None
    pairs = (stride_integers("r", residual), stride_integers("y", output))
    rows, step_w = divmod(config.block_m, strips)
    step_n, step_h = divmod(rows, problem.out_size[0])
    integers = [
        Integer.of("images", problem.batch),
        Integer.of("IN_H", problem.in_size[0]),
        Integer.of("IN_W", problem.in_size[1]),
        Integer.of("OUT_H", problem.out_size[0]),
        Integer.of("OUT_W", problem.out_size[1]),
        Integer.of("in_channels", problem.in_channels, stride=True),
        Integer.of("out_channels", problem.out_channels, stride=True),
        Integer.of("packs", packs),
        Integer.of("tiles_each", config.tiles_per_program),
        Integer.of("strips_w", strips),
        Integer.of("step_n", step_n),
        Integer.of("step_h", step_h),
        Integer.of("step_w", step_w),
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=True, stride=True),
        *(integer for pair in pairs for integer in pair.integers if not integer.parameter.endswith("w")),
    ]
    buffers = [
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment),
        *finishing.buffers,
    ]
    constants = {
        "STRIDE_XW": x.strides[3],
        "STRIDE_YW": output.strides[3],
        "STRIDE_RW": residual.strides[3] if residual else 0,
        "C_PER_GROUP": problem.c_per_group,
        "K_PER_GROUP": problem.k_per_group,
        "WINDOW": window_constant(problem),
        "IN_SHUFFLE": problem.input_shuffle,
        "OUT_SHUFFLE": problem.out_channels // problem.epilogue.shuffle if problem.epilogue.shuffle > 1 else 1,
        "PACK": config.pack,
        "EVEN_K": problem.groups % config.pack == 0 and config.pack * problem.c_per_group == block_k(problem, config),
        "EVEN_N": problem.groups % config.pack == 0 and config.pack * problem.k_per_group == block_n(problem, config),
        "BLOCK_M": config.block_m,
        "BLOCK_N": block_n(problem, config),
        "BLOCK_K": block_k(problem, config),
        "STRIP": config.strip,
        "RESIDENT": config.resident,
        "AHEAD": min(config.rows_ahead, problem.kernel_size[0]),
        "ISOLATE": isolates(config),
        "WIDE_M": (tiles + config.tiles_per_program) * config.block_m > INT32_MAX,
        "PRECISION": problem.precision,
        **finishing.constants,
        **{name: value for pair in pairs for name, value in pair.constants.items() if not name.endswith("w")},
    }
    return Launch(
        packed_groups,
        config,
        (programs(problem, config), 1, 1),
        tuple(buffers),
        tuple(integers),
        constants,
        config.tiles_per_program,
    )
