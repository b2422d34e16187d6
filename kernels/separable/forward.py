"""A grouped convolution and the 1x1 convolution that follows, in one kernel; the tensor between them stays on chip.

A program makes BLOCK_M pixels by BLOCK_N channels of the 1x1 convolution. It walks the intermediate channels in slices:
each is computed by the grouped convolution, finished, rounded to the dtype and multiplied by its part of the 1x1
weight. Weights are [K, R, S, C/groups] and [OUT_CHANNELS, K], contiguous; input channels are innermost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Epilogue, Reach, Strides, Taps
from grouped_conv.kernels.device_code.epilogue import activate, affine, finish, pixel_offsets
from grouped_conv.kernels.device_code.index import OUTSIDE, decode_pixels, tap_bits
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.launching.calls import Temporary
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import (
    Arguments,
    Operand,
    channels_innermost,
    epilogue_arguments,
    format_strides,
    is_krsc,
    output_strides,
    stride_integers,
)
from grouped_conv.kernels.launching.window import tap_mode, window_constant, window_extent
from grouped_conv.kernels.passes.packing import Packing
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, is_unrolled, slices_of, tiles, why_invalid
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.separable.slices import (
    Cut,
    Groups,
    Inputs,
    direct_slice,
    dot_slice,
    isolated_slice,
    load_pointwise,
)


class Between(NamedTuple):
    """The activation between the two convolutions."""

    ACTIVATION: str
    NEGATIVE_SLOPE: float


class Weights(NamedTuple):
    """Pointers to the first convolution's weight, scale and bias (or None), and to the 1x1 weight."""

    w: tl.tensor
    scale: tl.tensor
    bias: tl.tensor
    w2: tl.tensor


@triton.jit
def separable(
    x_ptr, w_ptr, scale1_ptr, bias1_ptr, w2_ptr, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr,
    M, IN_H, IN_W, OUT_H, OUT_W, slices,
    stride_xn, stride_xh, stride_xw, stride_yn, stride_yc, stride_yh, stride_yw,
    stride_rn, stride_rc, stride_rh, stride_rw,
    GROUPS: tl.constexpr, CUT: tl.constexpr, BETWEEN: tl.constexpr, FINISH: tl.constexpr, WINDOW: tl.constexpr,
    TAP_MODE: tl.constexpr, OUT_CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE_M: tl.constexpr,
):  # fmt: skip
    TILES_N: tl.constexpr = (OUT_CHANNELS + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    m, image, out_h, out_w = decode_pixels(pid // TILES_N, OUT_H, OUT_W, BLOCK_M, WIDE_M)
    row_ok = m < M
    ih0 = out_h.to(tl.int32) * WINDOW.STRIDE_H - WINDOW.PAD_H
    iw0 = out_w.to(tl.int32) * WINDOW.STRIDE_W - WINDOW.PAD_W
    x_rows = x_ptr + pixel_offsets(image, ih0, iw0, Strides(stride_xn, 1, stride_xh, stride_xw))
    ih0 = tl.where(row_ok, ih0, OUTSIDE)
    TAPS: tl.constexpr = Taps(WINDOW.KERNEL_H, WINDOW.KERNEL_W, WINDOW.DILATION_H, WINDOW.DILATION_W, TAP_MODE)
    reach = Reach(tap_bits(ih0, iw0, IN_H, IN_W, TAPS), ih0, iw0, IN_H, IN_W)
    inputs = Inputs(x_rows, reach, stride_xh, stride_xw)  # rows [BLOCK_M] are read only where a tap is inside
    weights = Weights(w_ptr, scale1_ptr, bias1_ptr, w2_ptr)

    channel = pid % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_ok = channel < OUT_CHANNELS
    w2_ok = channel_ok if OUT_CHANNELS % BLOCK_N != 0 else None
    acc = chained_sums(inputs, weights, channel, w2_ok, slices, GROUPS, CUT, BETWEEN, TAPS, False)
    if CUT.PACK > 1:
        # Zero weights between the groups of a pack turn one group's Inf or NaN into NaN in all of them, and from there
        # into every channel of its pixel: a tile without NaN is right, one with NaN is done again group by group.
        if tl.max(tl.max((acc != acc).to(tl.int32), 1), 0) != 0:
            acc = chained_sums(inputs, weights, channel, w2_ok, slices, GROUPS, CUT, BETWEEN, TAPS, True)
    acc = affine(acc, scale_ptr, bias_ptr, channel, channel_ok)
    y_rows = pixel_offsets(image, out_h, out_w, Strides(stride_yn, 1, stride_yh, stride_yw))
    r_rows = None
    if residual_ptr is not None:
        r_rows = pixel_offsets(image, out_h, out_w, Strides(stride_rn, 1, stride_rh, stride_rw))
    epilogue = Epilogue(None, None, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc)
    finish(acc, epilogue, y_rows, r_rows, row_ok, channel, channel_ok, FINISH)


@triton.jit
def chained_sums(
    inputs, weights, channel, channel_ok, slices, GROUPS: tl.constexpr, CUT: tl.constexpr, BETWEEN: tl.constexpr,
    TAPS: tl.constexpr, ISOLATED: tl.constexpr,
):  # fmt: skip
    """Sums of the 1x1 convolution, [BLOCK_M, BLOCK_N], over all slices of the intermediate channels."""
    MID: tl.constexpr = GROUPS.COUNT * GROUPS.K
    ACTIVATION: tl.constexpr = BETWEEN.ACTIVATION
    PRECISION: tl.constexpr = CUT.PRECISION
    n = tl.arange(0, CUT.TILE)
    acc = tl.zeros((inputs.rows.shape[0], channel.shape[0]), tl.float32)
    # Not pipelined: around unrolled steps wgmma then read copies still in flight (sm_90, found by executing the PTX).
    for index in tl.range(0, slices, num_stages=1):
        group = index // CUT.PARTS * CUT.PACK
        begin = index % CUT.PARTS * CUT.USED  # first channel of this slice within its group
        first = index * CUT.USED if CUT.DIRECT or CUT.PACK > 1 else group * GROUPS.K + begin
        if CUT.DIRECT or CUT.PACK > 1:
            n_ok = (n < CUT.USED) & (first + n < MID)
        else:
            n_ok = begin + n < GROUPS.K
        if CUT.DIRECT:
            part = direct_slice(inputs, weights.w, first + n, n_ok, CUT, TAPS)
        elif ISOLATED:
            part = isolated_slice(inputs, weights.w, group, first, n_ok, GROUPS, CUT, TAPS)
        else:
            part = dot_slice(
                inputs, weights.w, group, first, n_ok, None, GROUPS, CUT, TAPS, CUT.UNROLL, CUT.NUM_STAGES
            )  # fmt: skip
        part = affine(part, weights.scale, weights.bias, first + n, n_ok)
        part = activate(part, ACTIVATION, BETWEEN.NEGATIVE_SLOPE)
        if not CUT.EVEN:
            part = tl.where(n_ok[None, :], part, 0.0)  # 0 * Inf of a neighbour, or an activation that moves zero
        w2 = load_pointwise(weights.w2, first + n, n_ok, channel, channel_ok, MID, CUT.EVEN)
        acc = multiply_add(part.to(w2.dtype), w2, acc, PRECISION)
    return acc


def canonical_operands(problem: SeparableProblem) -> dict[str, Operand]:
    """Dense, aligned operands in the problem's memory formats."""
    first, second = problem.first, problem.second
    vector, output = Operand((1, 1, 1, 1)), Operand(output_strides(second))
    return {
        "input": Operand(format_strides(first.input_shape, first.input_channels_last)),
        "weight": Operand(format_strides(first.weight_shape, first.weight_channels_last)),
        "pointwise_weight": Operand(format_strides(problem.pointwise_shape, problem.pointwise_channels_last)),
        "output": output,
        "residual": output,
        **dict.fromkeys(("bias", "scale", "pointwise_bias", "pointwise_scale"), vector),
    }


def plan_separable_call(
    problem: SeparableProblem, config: SeparableConfig, operands: Mapping[str, Operand] | None = None
) -> tuple[tuple[Launch, ...], tuple[Temporary, ...]]:
    """(launches, temporaries) of one call: a pass for each operand that the kernel cannot read as it is; the kernel.

    Args:
        operands: as `plan_separable` takes them, in any memory format; missing ones are dense, in the problem's memory
            format and 16-byte aligned.

    Raises:
        ValueError: when the configuration cannot run the problem, with the reason.
    """
    reason = why_invalid(problem, config)
    if reason is not None:
        raise ValueError(f"{config} cannot run {problem}: {reason}")
    given = {
        name: operand.named(name) for name, operand in (canonical_operands(problem) | dict(operands or {})).items()
    }
    packing = Packing(problem.dtype, given)
    if not channels_innermost(given["input"], problem.first.input_shape):
        packing.pack("input", problem.first.input_shape)
    for name, shape in (("weight", problem.first.weight_shape), ("pointwise_weight", problem.pointwise_shape)):
        if not is_krsc(given[name], shape):
            packing.pack(name, shape)
    return (*packing.launches, plan_separable(problem, config, given)), tuple(packing.temporaries)


def plan_separable(problem: SeparableProblem, config: SeparableConfig, operands: Mapping[str, Operand]) -> Launch:
    """The kernel's launch for `problem`.

    Args:
        operands: `input` with channels innermost, `weight` and `pointwise_weight` contiguous as the kernel reads them,
            `output`, and where the problem has them `bias`, `scale` (of the first convolution), `pointwise_bias`,
            `pointwise_scale` and `residual`.
    """
    x, output = operands["input"], operands["output"]
    cut = slices_of(problem, config)
    trips = cut.trips(problem)
    finishing = _finishing_arguments(problem, operands)
    between = _first_arguments(problem, operands)
    strides = (stride_integers("r", operands.get("residual")), stride_integers("y", output))
    wide_window = window_extent(problem.first, x) > INT32_MAX
    integers = [
        Integer.of("M", problem.pixels),
        Integer.of("IN_H", problem.first.in_size[0]),
        Integer.of("IN_W", problem.first.in_size[1]),
        Integer.of("OUT_H", problem.first.out_size[0]),
        Integer.of("OUT_W", problem.first.out_size[1]),
        Integer.of("slices", cut.count),
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=wide_window, stride=True),
        Integer.of("stride_xw", x.strides[3], wide=wide_window, stride=True),
        *(integer for pair in strides for integer in pair.integers),
    ]
    buffers = [
        Buffer(parameter, operands[name].buffer, problem.dtype, operands[name].alignment)
        for parameter, name in (("x_ptr", "input"), ("w_ptr", "weight"), ("w2_ptr", "pointwise_weight"))
    ]
    constants = {
        **_shape_constants(problem),
        "CUT": _cut(problem, config),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "WIDE_M": problem.pixels > INT32_MAX - config.block_m,
        **finishing.constants,
        **between[1],
        **{name: value for pair in strides for name, value in pair.constants.items()},
    }
    programs = tiles(problem, config)[2]
    return Launch(
        separable,
        config,
        (programs, 1, 1),
        (*buffers, *between[0], *finishing.buffers),
        tuple(integers),
        constants,
        cut.count * trips,
    )


def _shape_constants(problem: SeparableProblem) -> dict[str, Any]:
    first = problem.first
    return {
        "GROUPS": Groups(first.groups, first.c_per_group, first.k_per_group),
        "OUT_CHANNELS": problem.out_channels,
        "WINDOW": window_constant(first),
        "TAP_MODE": tap_mode(first),
    }


def _cut(problem: SeparableProblem, config: SeparableConfig) -> Cut:
    first, slices, direct = problem.first, slices_of(problem, config), config.method == "direct"
    used = slices.pack * first.k_per_group if slices.pack > 1 else slices.tile
    channels = first.out_channels if direct or slices.pack > 1 else first.k_per_group
    return Cut(
        direct,
        slices.pack,
        slices.parts,
        slices.tile,
        used,
        channels % used == 0 and used == slices.tile,
        slices.depth,
        slices.steps,
        is_unrolled(problem, config),
        config.num_stages,
        first.precision,
    )


def _first_arguments(problem: SeparableProblem, operands: Mapping[str, Operand]) -> tuple[list[Buffer], dict[str, Any]]:
    """(buffers, constants) of what happens between the two convolutions."""
    epilogue = problem.first.epilogue
    constants: dict[str, Any] = {"BETWEEN": Between(epilogue.activation, epilogue.negative_slope)}
    buffers = []
    for name, wanted in (("scale", epilogue.scale), ("bias", epilogue.bias)):
        if wanted:
            buffers.append(Buffer(f"{name}1_ptr", operands[name].buffer, problem.dtype, operands[name].alignment))
        else:
            constants[f"{name}1_ptr"] = None
    return buffers, constants


def _finishing_arguments(problem: SeparableProblem, operands: Mapping[str, Operand]) -> Arguments:
    """The arguments of what follows the second convolution: its operands, under the names a convolution gives them."""
    renamed = {
        name.removeprefix("pointwise_"): operand
        for name, operand in operands.items()
        if name not in ("bias", "scale", "input", "weight", "pointwise_weight")
    }
    found = epilogue_arguments(problem.second, renamed)
    return replace(
        found,
        buffers=tuple(replace(buffer, name=renamed[buffer.name].buffer or buffer.name) for buffer in found.buffers),
    )
