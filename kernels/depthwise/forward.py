"""Forward depthwise convolution (one input channel per group, any multiplier): the kernel and its launch planner.

Direct, in fp32, no `tl.dot`. A thread owns a register tile of TILE_H x TILE_W outputs in each of its channels, so that
it uses an input many times once it has loaded it. Tiles are numbered by rows of tiles across all images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.bundles import Affine, Channels, Code, Loop, Patch, Pixels, Taps, TileAxis
from grouped_conv.kernels.depthwise.forward_rules import Axis, DepthwiseConfig, axes_of, straight_columns, walk_of
from grouped_conv.kernels.depthwise.tile_blocks import channel_vectors, decode_block, finish_tile, is_interior
from grouped_conv.kernels.depthwise.tile_sums import load_all_taps, tile_sums
from grouped_conv.kernels.device_code.bundles import Epilogue, Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.device_code.index import OUTSIDE
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Arguments, Operand, epilogue_arguments
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def depthwise(
    x_ptr, w_ptr, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr,
    channels, tiles_c, IN_H, IN_W, OUT_H, OUT_W, rows, rows_each, blocks_w, kernel_rows, chunks,
    stride_xn, stride_xh, stride_xw, stride_wm, stride_wr, stride_ws, stride_wc,
    stride_yn, stride_yc, stride_yh, stride_yw, stride_rn, stride_rc, stride_rh, stride_rw,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, CODE: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr, STEPS: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    pid_c, part, block_w, block_h = decode_block(tiles_c, blocks_w, CHANNELS.PER_GROUP // CHANNELS.MULTIPLIERS)
    c = pid_c * CHANNELS.BLOCK + tl.arange(0, CHANNELS.BLOCK)
    lane = tl.arange(0, BLOCK_H * BLOCK_W)
    ow0 = (block_w * BLOCK_W + lane % BLOCK_W) * COLUMNS.TILE  # first output column of each register tile, [BLOCK_P]
    iw0 = ow0 * COLUMNS.STRIDE - COLUMNS.PAD
    # Channel vectors are [BLOCK_P, BLOCK_C] as the input is: each thread loads its own channels, as wide
    c_ok = (c < channels)[None, :]
    lanes = tl.zeros((BLOCK_H * BLOCK_W, 1), tl.int32)
    first = part * CHANNELS.MULTIPLIERS
    w_base = w_ptr + ((c.to(tl.int64) * stride_wc + first * stride_wm)[None, :] + lanes)
    w = ()
    if CODE.RESIDENT:
        w = load_all_taps(
            Taps(w_base, c_ok, None, stride_wm, stride_wr, stride_ws), ROWS, COLUMNS, CHANNELS
        )  # fmt: skip

    channel = c * CHANNELS.PER_GROUP + first
    channel_ok = c < channels
    k_first = channel[None, :] + lanes
    if CHANNELS.WIDE:
        channel = pid_c * (CHANNELS.BLOCK * CHANNELS.PER_GROUP) + tl.arange(0, CHANNELS.BLOCK * CHANNELS.PER_GROUP)
        channel_ok = channel < channels * CHANNELS.PER_GROUP
    # Beginning with the bias saves an addition, but in fp32 its rounding error grew to 1.2 times the tolerance (7x7).
    scale = None
    if scale_ptr is not None or x_ptr.dtype.element_ty == tl.float32:
        scale = channel_vectors(scale_ptr, k_first, c_ok, CHANNELS, 1.0)
    bias = channel_vectors(bias_ptr, k_first, c_ok, CHANNELS, 0.0)
    affine = Affine(scale, bias)
    epilogue = Epilogue(None, None, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc)

    for step in tl.range(STEPS):
        row0 = (block_h * STEPS + step) * BLOCK_H
        row = row0 + lane // BLOCK_W  # row of tiles, over all images, [BLOCK_P]
        row_ok = row < rows
        image = row // rows_each
        oh0 = row % rows_each * ROWS.TILE
        ih0 = oh0 * ROWS.STRIDE - ROWS.PAD
        x_rows = pixel_offsets(image, ih0, iw0, Strides(stride_xn, 1, stride_xh, stride_xw))
        x_base = x_ptr + (x_rows[:, None] + c[None, :])
        ih0 = tl.where(row_ok, ih0, OUTSIDE)
        inner = is_interior(row0, block_w, rows, rows_each, IN_H, IN_W, ROWS, COLUMNS, BLOCK_H, BLOCK_W, CODE.INTERIOR)
        acc = tile_sums(
            w, affine, Patch(x_base, ih0[:, None], iw0[:, None], IN_H, IN_W, stride_xh, stride_xw),
            Taps(w_base, c_ok, None, stride_wm, stride_wr, stride_ws), Loop(0, kernel_rows, chunks), inner, ROWS,
            COLUMNS, CHANNELS, CODE,
        )  # fmt: skip
        finish_tile(
            acc, affine, epilogue, Strides(stride_yn, stride_yc, stride_yh, stride_yw),
            Strides(stride_rn, stride_rc, stride_rh, stride_rw), Pixels(image, oh0, ow0, row_ok, OUT_H, OUT_W), channel,
            channel_ok, ROWS, COLUMNS, CHANNELS, FINISH,
        )  # fmt: skip


def plan_depthwise(problem: ConvProblem, config: DepthwiseConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem`; the input has channels innermost, the weight the order that `config` wants."""
    x, weight, output = (_turned(operands[name], config) for name in ("input", "weight", "output"))
    residual = _turned(operands["residual"], config) if problem.epilogue.residual else None
    across, along = axes_of(problem, config)
    walk = walk_of(problem, config)
    finishing = epilogue_arguments(problem, operands)
    parts = (
        _sizes(problem, config),
        _strides("x", x, config, reach=(across.window(config.tile_h), along.window(config.tile_w))),
        _weight_strides(problem, weight, config),
        _strides("y", output, config, reach=(config.tile_h, config.tile_w)),
        _strides("r", residual, config, reach=(config.tile_h, config.tile_w)),
    )
    buffers = (
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("w_ptr", weight.buffer, "float32" if config.pack_weight else problem.dtype, weight.alignment),
        *finishing.buffers,
    )
    wide = config.multipliers == problem.k_per_group and config.multipliers in (1, 2, 4)
    even = problem.in_channels % config.block_c == 0
    constants: dict[str, Any] = {
        "ROWS": _tile_axis(across, config.tile_h),
        "COLUMNS": _tile_axis(along, config.tile_w),
        "CHANNELS": Channels(config.block_c, problem.k_per_group, config.multipliers, even, wide),
        "CODE": Code(config.row_loop, straight_columns(problem, config), config.resident, config.interior),
        "BLOCK_H": config.block_h,
        "BLOCK_W": config.block_w,
        "STEPS": config.steps,
        **finishing.constants,
    }
    if not wide:
        constants["FINISH"] = constants["FINISH"]._replace(VECTOR=1)  # channels of one multiplier are not neighbours
    for part in parts:
        constants |= part.constants
    integers = tuple(integer for part in parts for integer in part.integers)
    return Launch(depthwise, config, (walk.programs, 1, 1), buffers, integers, constants, config.steps)


def _tile_axis(axis: Axis, tile: int) -> TileAxis:
    return TileAxis(axis.kernel, axis.stride, axis.pad, axis.dilation, tile)


def _turned(operand: Operand, config: DepthwiseConfig) -> Operand:
    """The operand with its last two axes exchanged if strips run along the height."""
    n, c, h, w = operand.strides
    return operand if config.strip == "w" else Operand((n, c, w, h), operand.alignment, operand.buffer)


def _sizes(problem: ConvProblem, config: DepthwiseConfig) -> Arguments:
    """Sizes of images and walk; the numbers of channels are constants where the configuration says so."""
    across, along = axes_of(problem, config)
    walk = walk_of(problem, config)
    counts = {"channels": problem.in_channels, "tiles_c": walk.tiles_c}
    integers = [
        *(
            ()
            if config.static_channels
            else (Integer.of(name, counts[name], stride=name == "channels") for name in counts)
        ),
        Integer.of("IN_H", across.read),
        Integer.of("IN_W", along.read),
        Integer.of("OUT_H", across.out),
        Integer.of("OUT_W", along.out),
        Integer.of("rows", walk.rows),
        Integer.of("rows_each", walk.rows_each),
        Integer.of("blocks_w", walk.blocks_w),
        Integer.of("kernel_rows", across.kernel),  # unknown to the compiler, or AMD's unrolls 5 rows and spills
        Integer.of("chunks", along.kernel // straight_columns(problem, config)),
    ]
    return Arguments(integers=tuple(integers), constants=counts if config.static_channels else {})


def _strides(letter: str, operand: Operand | None, config: DepthwiseConfig, reach: tuple[int, int]) -> Arguments:
    """`stride_{letter}n/c/h/w`; 64 bits wide where `reach` rows and columns of a tile span more than 32 hold."""
    axes = "nhw" if letter == "x" else "nchw"
    if operand is None:
        return Arguments(constants={f"stride_{letter}{axis}": None for axis in axes})
    values = dict(zip("nchw", operand.strides, strict=True))
    wide = reach[0] * values["h"] + reach[1] * values["w"] > INT32_MAX
    integers, constants = [], {}
    for axis in axes:
        name, value = f"stride_{letter}{axis}", values[axis]
        if (axis == "c" and value == 1) or (axis == "w" and config.static_channels and not wide):
            constants[name] = value
        else:
            integers.append(Integer.of(name, value, wide=wide or axis in "nc", stride=True))
    return Arguments(integers=tuple(integers), constants=constants)


def _weight_strides(problem: ConvProblem, weight: Operand, config: DepthwiseConfig) -> Arguments:
    """Strides of the weight by multiplier, kernel row, kernel column and input channel."""
    taps, channels, multiplier = problem.taps, problem.in_channels, problem.k_per_group
    stride_k, _, stride_r, stride_s = weight.strides
    values = {"m": stride_k, "r": stride_r, "s": stride_s, "c": multiplier * stride_k}
    if config.pack_weight:  # [multiplier, KERNEL_H, KERNEL_W, channels], rows and columns of the image
        rows = {"r": problem.kernel_size[1] * channels, "s": channels}
        turned = {"r": rows["s"], "s": rows["r"]}
        values = {"m": taps * channels, **(rows if config.strip == "w" else turned), "c": 1}
    names = {f"stride_w{axis}": value for axis, value in values.items()}
    if config.static_channels or not config.pack_weight:
        return Arguments(constants=names)
    constants = {"stride_wc": names.pop("stride_wc")}
    wide = taps * channels * multiplier > INT32_MAX
    integers = (Integer.of(name, value, wide=wide, stride=True) for name, value in names.items())
    return Arguments(integers=tuple(integers), constants=constants)
