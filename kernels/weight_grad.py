"""The gradient of the weight, for equal groups: the kernel and its launch planner.

Rows are output channels of one group, columns its weights in (kernel row, kernel column, channel) order, the reduction
runs over output pixels. A program sums one part of the pixels and stores it in a workspace; `gradient_reduce` adds the
parts. Pixels advance by additions and carries: a division per step would double the loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.gradient_operands import gradient_arguments, is_wide
from grouped_conv.kernels.jit_epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.jit_gradient import load_gradient
from grouped_conv.kernels.jit_index import inside, shuffled
from grouped_conv.kernels.jit_reduction import multiply_add
from grouped_conv.kernels.launch import Buffer, Integer, Launch, power_of_two_divisor
from grouped_conv.kernels.operands import FLOAT32_VECTOR, Operand, is_dense
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.weight_grad_rules import WeightGradConfig, pixels, pixels_per_split, tiles


@triton.jit
def next_pixels(row, column, over_h, over_w, OUT_H, OUT_W):
    """(row, column, was a row's end passed, was an image's end passed) a step of less than an image further on."""
    column += over_w
    row_ends = column >= OUT_W
    column = tl.where(row_ends, column - OUT_W, column)
    row += tl.where(row_ends, over_h + 1, over_h)
    image_ends = row >= OUT_H
    return tl.where(image_ends, row - OUT_H, row), column, row_ends, image_ends


@triton.jit
def advanced(offset, row_ends, image_ends, over_n, over_h, over_w, OUT_H, OUT_W, stride_n, stride_h, stride_w):
    """The offsets of pixels a step further on, by additions."""
    step = over_n * stride_n + over_h * stride_h + over_w * stride_w
    offset += tl.where(row_ends, step + (stride_h - OUT_W * stride_w), step)
    return offset + tl.where(image_ends, stride_n - OUT_H * stride_h, tl.zeros_like(stride_n))


@triton.jit
def places(image, row, column, stride_n, stride_h, stride_w, WIDE: tl.constexpr):
    """Offset of each pixel's first channel, in int64 where 32 bits do not hold the tensor: they double the loop."""
    if WIDE:
        return pixel_offsets(image, row, column, stride_n, stride_h, stride_w)
    else:
        return image * stride_n + row * stride_h + column * stride_w


@triton.jit
def weight_grad(
    dy_ptr,
    known_ptr,
    x_ptr,
    workspace_ptr,
    M,
    part,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    splits,
    out_channels,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    stride_xn,
    stride_xh,
    stride_xw,
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
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SHUFFLE: tl.constexpr,
    SHUFFLE_KNOWN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    DENSE_G: tl.constexpr,
    DENSE_K: tl.constexpr,
    WIDE: tl.constexpr,
    X_ALIGN: tl.constexpr,
    G_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
):
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * C_PER_GROUP
    TILES_M: tl.constexpr = (K_PER_GROUP + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (DEPTH + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    pid_n = pid % TILES_N
    pid_m = pid // TILES_N % TILES_M
    split = pid // (TILES_N * TILES_M) % splits
    group = pid // (TILES_N * TILES_M) // splits

    row = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < K_PER_GROUP
    channel = group * K_PER_GROUP + row
    grad_channel = shuffled(channel, SHUFFLE, OUT_CHANNELS)
    known_channel = shuffled(channel, SHUFFLE_KNOWN, OUT_CHANNELS)

    column = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    col_ok = column < DEPTH
    tap = column // C_PER_GROUP
    down = (tap // KERNEL_W) * DILATION_H - PAD_H  # from an output pixel's first row to the tap's, [BLOCK_N]
    right = (tap % KERNEL_W) * DILATION_W - PAD_W
    in_channel = group * C_PER_GROUP + column % C_PER_GROUP
    if INPUT_SHUFFLE > 1:  # a shuffle in C / s groups undoes one in s
        in_channel = shuffled(in_channel, IN_CHANNELS // INPUT_SHUFFLE, IN_CHANNELS)
    x_cols = places(0 * down, down, right, stride_xn, stride_xh, stride_xw, WIDE) + in_channel

    begin = split.to(tl.int64) * part if WIDE else split * part
    end = tl.minimum(begin + part, M)
    pixel = begin + tl.arange(0, BLOCK_K)
    image, out_h, out_w = pixel // (OUT_H * OUT_W), (pixel // OUT_W % OUT_H).to(tl.int32), (pixel % OUT_W).to(tl.int32)
    over_n = BLOCK_K // (OUT_H * OUT_W)
    over_h = BLOCK_K // OUT_W % OUT_H
    over_w = BLOCK_K % OUT_W
    # Offsets are carried in units of their alignment: what a loop carries loses its divisibility, a product has it.
    x_units = places(
        image,
        out_h,
        out_w,
        stride_xn // X_ALIGN,
        STRIDE_H * stride_xh // X_ALIGN,
        STRIDE_W * stride_xw // X_ALIGN,
        WIDE,
    )
    g_units = x_units
    if not DENSE_G:
        g_units = places(image, out_h, out_w, stride_gn // G_ALIGN, stride_gh // G_ALIGN, stride_gw // G_ALIGN, WIDE)
    k_units = x_units
    if ACTIVATION != "none" and not DENSE_K:
        k_units = places(image, out_h, out_w, stride_kn // K_ALIGN, stride_kh // K_ALIGN, stride_kw // K_ALIGN, WIDE)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(begin, end, BLOCK_K, num_stages=NUM_STAGES):
        m = first + tl.arange(0, BLOCK_K)
        ok = m < end
        if DENSE_G:
            g_rows = m * stride_gw
        else:
            g_rows = g_units * G_ALIGN
        known_ptrs = None
        if ACTIVATION != "none":
            if DENSE_K:
                k_rows = m * stride_kw
            else:
                k_rows = k_units * K_ALIGN
            known_ptrs = known_ptr + (k_rows[None, :] + known_channel[:, None])
        # [BLOCK_M, BLOCK_K] through transposed pointers: transposing a loaded tile costs the asynchronous copy
        a = load_gradient(
            dy_ptr + (g_rows[None, :] + grad_channel[:, None]), known_ptrs, ok[None, :] & row_ok[:, None], None,
            ACTIVATION, NEGATIVE_SLOPE,
        )  # fmt: skip
        inside_h = inside((out_h * STRIDE_H)[:, None] + down[None, :], IN_H)
        mask = inside_h & inside((out_w * STRIDE_W)[:, None] + right[None, :], IN_W) & ok[:, None] & col_ok[None, :]
        b = tl.load(
            x_ptr + ((x_units * X_ALIGN)[:, None] + x_cols[None, :]), mask=mask, other=0.0
        )  # [BLOCK_K, BLOCK_N]
        acc = multiply_add(a, b, acc, PRECISION)
        out_h, out_w, row_ends, image_ends = next_pixels(out_h, out_w, over_h, over_w, OUT_H, OUT_W)
        x_units = advanced(
            x_units, row_ends, image_ends, over_n, over_h, over_w, OUT_H, OUT_W, stride_xn // X_ALIGN,
            STRIDE_H * stride_xh // X_ALIGN, STRIDE_W * stride_xw // X_ALIGN,
        )  # fmt: skip
        if not DENSE_G:
            g_units = advanced(
                g_units, row_ends, image_ends, over_n, over_h, over_w, OUT_H, OUT_W, stride_gn // G_ALIGN,
                stride_gh // G_ALIGN, stride_gw // G_ALIGN,
            )  # fmt: skip
        if ACTIVATION != "none" and not DENSE_K:
            k_units = advanced(
                k_units, row_ends, image_ends, over_n, over_h, over_w, OUT_H, OUT_W, stride_kn // K_ALIGN,
                stride_kh // K_ALIGN, stride_kw // K_ALIGN,
            )  # fmt: skip

    target = workspace_ptr + split.to(tl.int64) * out_channels * DEPTH
    store_tile(target, acc, channel.to(tl.int64) * DEPTH, column, 1, row_ok, col_ok, VECTOR)


def plan_weight_grad(problem: ConvProblem, config: WeightGradConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch that leaves partial sums in `workspace`, `[splits, K, R, S, C / groups]` in fp32."""
    x = operands["input"]
    _, _, programs = tiles(problem, config)
    part = pixels_per_split(problem, config)
    wide = is_wide(problem, operands)
    loading = gradient_arguments(problem, operands, wide=wide)
    integers = (
        Integer.of("M", pixels(problem)),
        Integer.of("part", part),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("splits", config.splits),
        Integer.of("out_channels", problem.out_channels, stride=True),
        *loading.integers,
        *(
            Integer.of(f"stride_x{axis}", x.strides[index], wide=wide, stride=True)
            for index, axis in ((0, "n"), (2, "h"), (3, "w"))
        ),
    )
    before = problem.input_shuffle
    depth = problem.taps * problem.c_per_group
    constants = {
        "C_PER_GROUP": problem.c_per_group,
        "K_PER_GROUP": problem.k_per_group,
        **{f"KERNEL_{axis}": size for axis, size in zip("HW", problem.kernel_size, strict=True)},
        **{f"STRIDE_{axis}": size for axis, size in zip("HW", problem.stride, strict=True)},
        "PAD_H": problem.padding[0],
        "PAD_W": problem.padding[2],
        **{f"DILATION_{axis}": size for axis, size in zip("HW", problem.dilation, strict=True)},
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "PRECISION": problem.precision,
        "INPUT_SHUFFLE": before,
        "IN_CHANNELS": problem.in_channels if before > 1 else 1,
        "VECTOR": FLOAT32_VECTOR if depth % FLOAT32_VECTOR == 0 else 1,
        "NUM_STAGES": config.num_stages,
        "DENSE_G": is_dense(problem, operands["grad_output"]),
        "DENSE_K": problem.epilogue.activation != "none" and is_dense(problem, operands["known"]),
        "WIDE": wide,
        **{
            f"{letter}_ALIGN": min(power_of_two_divisor(operand.strides[axis]) for axis in (0, 2, 3))
            for letter, operand in (("X", x), ("G", operands["grad_output"]), ("K", operands["known"]))
        },
        **loading.constants,
    }
    buffers = (
        *loading.buffers,
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("workspace_ptr", "workspace", "float32"),
    )
    return Launch(weight_grad, config, (programs, 1, 1), buffers, integers, constants, math.ceil(part / config.block_k))
