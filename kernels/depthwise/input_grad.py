"""The gradient of a depthwise convolution's input (one input channel per group): the kernel and its launch planner.

Direct, in fp32, no `tl.dot`. A thread owns a register tile of TILE_H x TILE_W input pixels in each of its channels. An
output's gradient that it has loaded serves every pixel that it reaches, and no product is with a zero that a stride
inserted. The scale is taken into the weights, of which fewer are loaded than gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig, straight_columns, walk_of
from grouped_conv.kernels.depthwise.input_grad_sums import part_products
from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.classes import class_taps
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE, shuffled
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Arguments, Operand, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.values.classes import class_step
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def depthwise_input_grad(
    dy_ptr,
    known_ptr,
    scale_ptr,
    w_ptr,
    dx_ptr,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    rows,
    rows_each,
    blocks_w,
    kernel_rows,
    chunks,
    parts,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    stride_wm,
    stride_wr,
    stride_ws,
    stride_wc,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    CHANNELS: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    STEP_H: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROW_LOOP: tl.constexpr,
    WIDE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    INPUT_SHUFFLE: tl.constexpr,
    VECTOR: tl.constexpr,
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
    SHUFFLE: tl.constexpr = DERIVATIVE.SHUFFLE
    SHUFFLE_KNOWN: tl.constexpr = DERIVATIVE.SHUFFLE_KNOWN
    OUT_CHANNELS: tl.constexpr = DERIVATIVE.OUT_CHANNELS
    TILES_C: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    EVEN_C: tl.constexpr = CHANNELS % BLOCK_C == 0
    CLASSES: tl.constexpr = STRIDE_H if ROW_LOOP else 1
    pid = tl.program_id(0)
    pid_c = pid % TILES_C
    block_w = pid // TILES_C % blocks_w
    class_h = pid // TILES_C // blocks_w % CLASSES
    block_h = pid // TILES_C // blocks_w // CLASSES

    c = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = (c < CHANNELS)[None, :]
    k = pid_c * (BLOCK_C * K_PER_GROUP) + tl.arange(0, BLOCK_C * MULTIPLIERS if WIDE else BLOCK_C)
    k_ok = (k < CHANNELS * K_PER_GROUP)[None, :] if WIDE else c_ok
    lane = tl.arange(0, BLOCK_H * BLOCK_W)
    row = block_h * BLOCK_H + lane // BLOCK_W  # row of tiles, over all images, [BLOCK_P]
    row_ok = row < rows
    image = row // rows_each
    ow0 = (block_w * BLOCK_W + lane % BLOCK_W) * (TILE_W // STRIDE_W)
    first_h = 0
    count_h = kernel_rows
    oh0 = row % rows_each * (TILE_H if ROW_LOOP else TILE_H // STRIDE_H)
    ih0 = oh0 * STRIDE_H + class_h
    if ROW_LOOP:
        if STRIDE_H == 1:
            oh0 = oh0 + PAD_H
        else:
            first_h, count_h, shift_h = class_taps(class_h, KERNEL_H, STRIDE_H, PAD_H, DILATION_H, STEP_H)
            oh0 = oh0 + shift_h

    g_rows = pixel_offsets(image, oh0, ow0, Strides(stride_gn, 1, stride_gh, stride_gw))
    k_rows = g_rows
    if ACTIVATION != "none":
        k_rows = pixel_offsets(image, oh0, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))
    oh0 = tl.where(row_ok, oh0, OUTSIDE)[:, None]
    lanes = tl.zeros((BLOCK_H * BLOCK_W, 1), tl.int32)
    acc = ()
    for _ in tl.static_range(TILE_H * TILE_W):
        acc = acc + (tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), tl.float32),)
    if MULTIPLIERS == K_PER_GROUP:  # without a loop: its carried sums and hoisted weights spilled at 3x3
        acc = part_products(
            acc, 0, dy_ptr, known_ptr, scale_ptr, w_ptr, g_rows, k_rows, c, k, lanes, oh0, ow0[:, None], OUT_H, OUT_W,
            c_ok, k_ok, first_h, count_h, chunks, stride_gh, stride_gw, stride_kh, stride_kw, stride_wm, stride_wr,
            stride_ws, stride_wc, K_PER_GROUP, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H,
            DILATION_W, STEP_H, MULTIPLIERS, TILE_H, TILE_W, CHUNK, ROW_LOOP, EVEN_C, WIDE, ACTIVATION, NEGATIVE_SLOPE,
            SHUFFLE, SHUFFLE_KNOWN, OUT_CHANNELS,
        )  # fmt: skip
    else:
        for part in tl.range(parts):
            acc = part_products(
                acc, part * MULTIPLIERS, dy_ptr, known_ptr, scale_ptr, w_ptr, g_rows, k_rows, c, k, lanes, oh0,
                ow0[:, None], OUT_H, OUT_W,
                c_ok, k_ok, first_h, count_h, chunks, stride_gh, stride_gw, stride_kh, stride_kw, stride_wm, stride_wr,
                stride_ws, stride_wc, K_PER_GROUP, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H,
                DILATION_W, STEP_H, MULTIPLIERS, TILE_H, TILE_W, CHUNK, ROW_LOOP, EVEN_C, WIDE, ACTIVATION,
                NEGATIVE_SLOPE, SHUFFLE, SHUFFLE_KNOWN, OUT_CHANNELS,
            )  # fmt: skip

    place = c
    if INPUT_SHUFFLE > 1:  # a shuffle in C / s groups undoes one in s
        place = shuffled(c, CHANNELS // INPUT_SHUFFLE, CHANNELS)
    iw0 = ow0 * STRIDE_W
    DOWN: tl.constexpr = STRIDE_H if ROW_LOOP else 1
    x_first = pixel_offsets(image, ih0, iw0, Strides(stride_xn, 1, stride_xh, stride_xw))
    for t in tl.static_range(TILE_H * TILE_W):
        pixel_ok = row_ok & (ih0 + (t // TILE_W) * DOWN < IN_H) & (iw0 + t % TILE_W < IN_W)
        x_rows = x_first + ((t // TILE_W) * DOWN * stride_xh + (t % TILE_W) * stride_xw)
        store_tile(dx_ptr, acc[t], x_rows, place, stride_xc, pixel_ok, c < CHANNELS, VECTOR)


def plan_depthwise_input_grad(
    problem: ConvProblem, config: DepthwiseInputGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch that writes `grad_input`; the weight lies as `config` asks."""
    weight, target, scale = operands["weight"], operands["grad_input"], operands["scale"]
    walk = walk_of(problem, config)
    windows = [
        d * k + s * t
        for d, k, s, t in zip(
            problem.dilation, problem.kernel_size, problem.stride, (config.tile_h, config.tile_w), strict=True
        )
    ]
    loading = near_strides(gradient_arguments(problem, operands), windows)
    storing = near_strides(stride_integers("x", target), windows)
    columns = straight_columns(problem, config)
    integers = (
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("rows", walk.rows),
        Integer.of("rows_each", walk.rows_each),
        Integer.of("blocks_w", walk.blocks_w),
        Integer.of("kernel_rows", problem.kernel_size[0]),
        Integer.of("chunks", problem.kernel_size[1] // columns),
        Integer.of("parts", problem.k_per_group // config.multipliers),
        *loading.integers,
        *storing.integers,
    )
    aligned = target.strides[1] == 1 and problem.input_shuffle == 1
    constants: dict[str, Any] = {
        **depthwise_constants(problem),
        **_weight_strides(problem, weight, config),
        "STEP_H": class_step(problem.stride[0], problem.dilation[0]),
        "TILE_H": config.tile_h,
        "TILE_W": config.tile_w,
        "BLOCK_H": config.block_h,
        "BLOCK_W": config.block_w,
        "BLOCK_C": config.block_c,
        "MULTIPLIERS": config.multipliers,
        "CHUNK": columns,
        "ROW_LOOP": config.row_loop,
        "WIDE": config.multipliers == problem.k_per_group and config.multipliers in (1, 2, 4),
        "VECTOR": 16 // problem.item_size if aligned else 1,
        **loading.constants,
        **storing.constants,
        **({} if problem.epilogue.scale else {"scale_ptr": None}),
    }
    buffers = [
        *loading.buffers,
        Buffer("w_ptr", weight.buffer, "float32" if config.pack_weight else problem.dtype, weight.alignment),
        Buffer("dx_ptr", target.buffer, problem.dtype, target.alignment),
    ]
    if problem.epilogue.scale:
        buffers.append(Buffer("scale_ptr", scale.buffer, problem.dtype, scale.alignment))
    return Launch(depthwise_input_grad, config, (walk.programs, 1, 1), tuple(buffers), integers, constants)


def depthwise_constants(problem: ConvProblem) -> dict[str, Any]:
    """The problem's numbers that both gradients' kernels have compiled in."""
    return {
        "CHANNELS": problem.in_channels,
        "K_PER_GROUP": problem.k_per_group,
        "WINDOW": window_constant(problem),
        "INPUT_SHUFFLE": problem.input_shuffle,
    }


def near_strides(arguments: Arguments, windows: list[int]) -> Arguments:
    """Row strides in 32 bits and column strides as constants, where `windows` rows and columns reach no further."""
    values = {integer.parameter: integer for integer in arguments.integers}
    integers, constants = [], dict(arguments.constants)
    for name, integer in values.items():
        rows, columns = (values[name[:-1] + axis].value if name[:-1] + axis in values else 0 for axis in "hw")
        near = windows[0] * abs(rows) + windows[1] * abs(columns) <= INT32_MAX
        if near and name.endswith("w"):
            constants[name] = integer.value
        elif near and name.endswith("h"):
            integers.append(replace(integer, type="i32"))
        else:
            integers.append(integer)
    return Arguments(arguments.buffers, tuple(integers), constants)


def _weight_strides(problem: ConvProblem, weight: Operand, config: DepthwiseInputGradConfig) -> dict[str, int]:
    """Strides of the weight by multiplier, kernel row, kernel column and input channel."""
    stride_k, _, stride_r, stride_s = weight.strides
    if not config.pack_weight:
        values = (stride_k, stride_r, stride_s, problem.k_per_group * stride_k)
    else:
        channels = problem.in_channels
        values = (problem.taps * channels, problem.kernel_size[1] * channels, channels, 1)
    return dict(zip(("stride_wm", "stride_wr", "stride_ws", "stride_wc"), values, strict=True))
