"""The gradient of a depthwise convolution's input (one input channel per group): the kernel and its launch planner.

Direct, in fp32, no `tl.dot`. A thread owns a register tile of TILE_H x TILE_W input pixels in each of its channels. It
loads the gradient of an output once and uses it for every pixel that the output read; no product is with a zero that a
stride inserted. Weights are multiplied by the scale, since fewer weights than gradients are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.bundles import Channels, Code, Gradients, Loop, Pixels, Place, TileAxis, Weights
from grouped_conv.kernels.depthwise.gradient_steps import share_of
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig, straight_columns, walk_of
from grouped_conv.kernels.depthwise.input_grad_sums import all_products
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.classes import class_taps
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE, shuffled
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Arguments, Operand, stride_integers
from grouped_conv.kernels.values.classes import class_step
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def store_pixels(
    acc, dx_ptr, x, pixels, channel, channel_ok, DOWN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Store each pixel of the register tile, whose rows are DOWN input rows apart; `x` are the strides."""
    first = pixel_offsets(pixels.image, pixels.h, pixels.w, x)
    for t in tl.static_range(ROWS.TILE * COLUMNS.TILE):
        down = t // COLUMNS.TILE * DOWN
        right = t % COLUMNS.TILE
        pixel_ok = pixels.ok & (pixels.h + down < pixels.height) & (pixels.w + right < pixels.width)
        store_tile(dx_ptr, acc[t], first + (down * x.h + right * x.w), channel, x.c, pixel_ok, channel_ok, VECTOR)


@triton.jit
def depthwise_input_grad(
    dy_ptr, known_ptr, scale_ptr, w_ptr, dx_ptr,
    IN_H, IN_W, OUT_H, OUT_W, rows, rows_each, blocks_w, kernel_rows, chunks, parts,
    stride_gn, stride_gh, stride_gw, stride_kn, stride_kh, stride_kw, stride_wm, stride_wr, stride_ws, stride_wc,
    stride_xn, stride_xc, stride_xh, stride_xw,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, CODE: tl.constexpr, DERIVATIVE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, IN_CHANNELS: tl.constexpr, INPUT_SHUFFLE: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    TILES_C: tl.constexpr = (IN_CHANNELS + CHANNELS.BLOCK - 1) // CHANNELS.BLOCK
    CLASSES: tl.constexpr = ROWS.STRIDE if CODE.ROW_LOOP else 1
    pid = tl.program_id(0)
    pid_c = pid % TILES_C
    block_w = pid // TILES_C % blocks_w
    class_h = pid // TILES_C // blocks_w % CLASSES
    block_h = pid // TILES_C // blocks_w // CLASSES

    share = share_of(pid_c, IN_CHANNELS, CHANNELS)
    lane = tl.arange(0, BLOCK_H * BLOCK_W)
    row = block_h * BLOCK_H + lane // BLOCK_W  # row of tiles, over all images, [BLOCK_P]
    row_ok = row < rows
    image = row // rows_each
    ow0 = (block_w * BLOCK_W + lane % BLOCK_W) * (COLUMNS.TILE // COLUMNS.STRIDE)
    first_h = 0
    count_h = kernel_rows
    oh0 = row % rows_each * (ROWS.TILE if CODE.ROW_LOOP else ROWS.TILE // ROWS.STRIDE)
    ih0 = oh0 * ROWS.STRIDE + class_h
    if CODE.ROW_LOOP:
        if ROWS.STRIDE == 1:
            oh0 = oh0 + ROWS.PAD
        else:
            first_h, count_h, shift_h = class_taps(class_h, ROWS.TAPS, ROWS.STRIDE, ROWS.PAD, ROWS.DILATION, CODE.STEP)
            oh0 = oh0 + shift_h

    g_rows = pixel_offsets(image, oh0, ow0, Strides(stride_gn, 1, stride_gh, stride_gw))
    k_rows = g_rows
    if DERIVATIVE.ACTIVATION != "none":
        k_rows = pixel_offsets(image, oh0, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))
    oh0 = tl.where(row_ok, oh0, OUTSIDE)[:, None]
    acc = all_products(
        Gradients(
            dy_ptr, known_ptr, OUT_H, OUT_W, Strides(stride_gn, 1, stride_gh, stride_gw),
            Strides(stride_kn, 1, stride_kh, stride_kw),
        ),
        Weights(w_ptr, scale_ptr, stride_wm, stride_wr, stride_ws, stride_wc), share,
        Place(oh0, ow0[:, None], g_rows, k_rows), Loop(first_h, count_h, chunks), parts, ROWS, COLUMNS, CHANNELS, CODE,
        DERIVATIVE,
    )  # fmt: skip

    place = share.c
    if INPUT_SHUFFLE > 1:  # a shuffle in C / s groups undoes one in s
        place = shuffled(share.c, IN_CHANNELS // INPUT_SHUFFLE, IN_CHANNELS)
    store_pixels(
        acc, dx_ptr, Strides(stride_xn, stride_xc, stride_xh, stride_xw),
        Pixels(image, ih0, ow0 * COLUMNS.STRIDE, row_ok, IN_H, IN_W), place, share.c < IN_CHANNELS, CLASSES, ROWS,
        COLUMNS, VECTOR,
    )  # fmt: skip


def plan_depthwise_input_grad(
    problem: ConvProblem, config: DepthwiseInputGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch that writes `grad_input`; the weight has the order that `config` wants."""
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
        **gradient_constants(problem, config),
        **_weight_strides(problem, weight, config),
        "CODE": Code(config.row_loop, columns, STEP=class_step(problem.stride[0], problem.dilation[0])),
        "BLOCK_H": config.block_h,
        "BLOCK_W": config.block_w,
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


def gradient_constants(
    problem: ConvProblem,
    config: DepthwiseInputGradConfig | DepthwiseWeightGradConfig,
    taps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The constants of both gradients' kernels; `taps` are the kernel rows and columns of a program, by default all."""
    above, _, left, _ = problem.padding
    rows, columns = taps or problem.kernel_size
    wide = config.multipliers == problem.k_per_group and config.multipliers in (1, 2, 4)
    even = problem.in_channels % config.block_c == 0
    return {
        "ROWS": TileAxis(rows, problem.stride[0], above, problem.dilation[0], config.tile_h),
        "COLUMNS": TileAxis(columns, problem.stride[1], left, problem.dilation[1], config.tile_w),
        "CHANNELS": Channels(config.block_c, problem.k_per_group, config.multipliers, even, wide),
        "IN_CHANNELS": problem.in_channels,
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
