"""The gradient of the weight for many thin groups: adjacent groups packed side by side into one product per tap.

A program owns a pack, a part of the output pixels and some kernel rows. It reads the output's gradient of a step once
and multiplies it with the input under each tap, into that tap's own sums. Products across groups are computed and never
stored, so Inf and NaN stay in their group.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Derivative, Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import inside
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.packed.sums import first_strips, load_row, next_strips, pack_columns, window_start
from grouped_conv.kernels.packed.weight_grad_rules import (
    PackedWeightGradConfig,
    block_m,
    block_n,
    grid,
    kernel_rows,
    programs,
    steps_each,
)
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def strip_gradients(
    g_pointers,
    k_pointers,
    image_ok,
    channel_ok,
    strip_w,
    OUT_W,
    stride_gw,
    stride_kw,
    STRIP: tl.constexpr,
    EVEN_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """The gradient of each pixel of the strips: STRIP tiles [BLOCK_M, BLOCK_K].

    Through transposed pointers: transposing a loaded tile costs narrow shared-memory accesses.
    """
    tiles = ()
    for u in tl.static_range(STRIP):
        mask = (image_ok & (strip_w < (OUT_W - u + STRIP - 1) // STRIP))[None, :]
        if not EVEN_M:
            mask = mask & channel_ok[:, None]
        known = k_pointers
        if ACTIVATION != "none":
            known = k_pointers + u * stride_kw
        tiles = tiles + (
            load_gradient(
                g_pointers + u * stride_gw, known, mask, None, Derivative(ACTIVATION, NEGATIVE_SLOPE, 1, 1, 1)
            ),
        )  # fmt: skip
    return tiles


@triton.jit
def packed_weight_grad(
    dy_ptr,
    known_ptr,
    x_ptr,
    workspace_ptr,
    images,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    in_channels,
    out_channels,
    packs,
    steps_each,
    strips_w,
    step_n,
    step_h,
    step_w,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    stride_xn,
    stride_xh,
    STRIDE_XW: tl.constexpr,
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    IN_SHUFFLE: tl.constexpr,
    OUT_SHUFFLE: tl.constexpr,
    PACK: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRIP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE_M: tl.constexpr,
    PRECISION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
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
    NEGATIVE_SLOPE: tl.constexpr = DERIVATIVE.NEGATIVE_SLOPE
    SHUFFLE_KNOWN: tl.constexpr = DERIVATIVE.SHUFFLE_KNOWN
    PARTS: tl.constexpr = (KERNEL_H + ROWS - 1) // ROWS
    COLUMNS: tl.constexpr = (STRIP - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1
    pid = tl.program_id(0)
    pack = pid % packs
    first_row = 0
    if PARTS > 1:
        first_row = pid // packs % PARTS * ROWS
    split = pid // packs // PARTS
    stored, channel, _, member_m, channel_ok = pack_columns(
        pack, out_channels, PACK, K_PER_GROUP, OUT_SHUFFLE, EVEN_M, BLOCK_M
    )
    memory, _, index, member_n, column_ok = pack_columns(
        pack, in_channels, PACK, C_PER_GROUP, IN_SHUFFLE, EVEN_N, BLOCK_N
    )
    x_pack = x_ptr + memory[None, :]
    dy_pack = dy_ptr + stored[:, None]
    known_pack = dy_pack
    if ACTIVATION != "none":
        known_pack = known_ptr + (channel if SHUFFLE_KNOWN == 1 else stored)[:, None]
    sums = ()
    for _ in tl.static_range(ROWS * KERNEL_W):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),)
    image, out_h, strip_w = first_strips(split, OUT_H, strips_w, steps_each, BLOCK_K, WIDE_M)
    for _ in tl.range(0, steps_each, num_stages=1):
        g_rows = pixel_offsets(image, out_h, strip_w * STRIP, Strides(stride_gn, 1, stride_gh, stride_gw))
        k_pointers = known_pack
        if ACTIVATION != "none":
            k_rows = pixel_offsets(image, out_h, strip_w * STRIP, Strides(stride_kn, 1, stride_kh, stride_kw))
            k_pointers = known_pack + k_rows[None, :]
        gradients = strip_gradients(
            dy_pack + g_rows[None, :], k_pointers, image < images, channel_ok, strip_w, OUT_W, stride_gw, stride_kw,
            STRIP, EVEN_M, ACTIVATION, NEGATIVE_SLOPE,
        )  # fmt: skip
        ih0, iw0, offset = window_start(
            image, out_h, strip_w * STRIP, images, stride_xn, stride_xh, STRIDE_XW, STRIDE_H, STRIDE_W, PAD_H, PAD_W
        )
        x_rows = x_pack + offset[:, None]  # [BLOCK_K, BLOCK_N]; read only where a tap is inside
        added = ()
        for r in tl.static_range(ROWS):
            tiles = load_row(
                x_rows + ((first_row + r) * DILATION_H) * stride_xh, inside(ih0 + (first_row + r) * DILATION_H, IN_H),
                column_ok, iw0, IN_W, STRIDE_XW, COLUMNS, KERNEL_W, STRIDE_W, DILATION_W, STRIP, EVEN_N,
            )  # fmt: skip
            for s in tl.static_range(KERNEL_W):
                acc = sums[r * KERNEL_W + s]
                for u in tl.static_range(STRIP):
                    acc = multiply_add(gradients[u], tiles[u * STRIDE_W + s * DILATION_W], acc, PRECISION)
                added = added + (acc,)
        sums = added
        image, out_h, strip_w = next_strips(image, out_h, strip_w, OUT_H, strips_w, step_n, step_h, step_w)

    diagonal = (member_m[:, None] == member_n[None, :]) & channel_ok[:, None] & column_ok[None, :]
    target = (split.to(tl.int64) * out_channels + channel) * (KERNEL_H * KERNEL_W * C_PER_GROUP)
    pointers = workspace_ptr + (target[:, None] + index[None, :])  # [BLOCK_M, BLOCK_N]
    for tap in tl.static_range(ROWS * KERNEL_W):
        mask = diagonal
        if KERNEL_H % ROWS != 0:
            mask = mask & (first_row + tap // KERNEL_W < KERNEL_H)
        tl.store(pointers + (first_row * KERNEL_W + tap) * C_PER_GROUP, sums[tap], mask=mask)


def plan_packed_weight_grad(
    problem: ConvProblem, config: PackedWeightGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch that leaves partial sums in `workspace`, `[splits, K, R, S, C / groups]` in fp32."""
    x = operands["input"]
    strips, steps, packs, _ = grid(problem, config)
    each = steps_each(problem, config)
    rows, step_w = divmod(config.block_k, strips)
    step_n, step_h = divmod(rows, problem.out_size[0])
    loading = gradient_arguments(problem, operands)
    integers = (
        Integer.of("images", problem.batch),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("in_channels", problem.in_channels, stride=True),
        Integer.of("out_channels", problem.out_channels, stride=True),
        Integer.of("packs", packs),
        Integer.of("steps_each", each),
        Integer.of("strips_w", strips),
        Integer.of("step_n", step_n),
        Integer.of("step_h", step_h),
        Integer.of("step_w", step_w),
        *loading.integers,
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=True, stride=True),
    )
    even = problem.groups % config.pack == 0
    tile_m, tile_n = block_m(problem, config), block_n(problem, config)
    shuffle = problem.epilogue.shuffle
    constants = {
        "STRIDE_XW": x.strides[3],
        "C_PER_GROUP": problem.c_per_group,
        "K_PER_GROUP": problem.k_per_group,
        "WINDOW": window_constant(problem),
        "IN_SHUFFLE": problem.input_shuffle,
        "OUT_SHUFFLE": problem.out_channels // shuffle if shuffle > 1 else 1,
        "PACK": config.pack,
        "EVEN_M": even and config.pack * problem.k_per_group == tile_m,
        "EVEN_N": even and config.pack * problem.c_per_group == tile_n,
        "BLOCK_M": tile_m,
        "BLOCK_N": tile_n,
        "BLOCK_K": config.block_k,
        "STRIP": config.strip,
        "ROWS": kernel_rows(problem, config),
        "WIDE_M": (steps + each) * config.block_k > INT32_MAX,
        "PRECISION": problem.precision,
        **loading.constants,
    }
    buffers = (
        *loading.buffers,
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("workspace_ptr", "workspace", "float32"),
    )
    return Launch(packed_weight_grad, config, (programs(problem, config), 1, 1), buffers, integers, constants, each)
