"""The gradient of the activation's argument: summed per channel for the bias, stored unchanged for the residual.

One pass over the output's gradient. Each program sums a range of pixels of some channels; `gradient_reduce` adds the
programs' parts in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import decode_pixels, shuffled
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.passes.configs import ChannelSumsConfig
from grouped_conv.kernels.passes.gradient_reduce import plan_sum_of_splits
from grouped_conv.kernels.values.problem import ConvProblem

PROGRAMS_PER_SM = 4
"""Programs that keep a multiprocessor's memory busy; a pass over memory gains nothing from more."""


@triton.jit
def channel_sums(
    dy_ptr, known_ptr, dresidual_ptr, workspace_ptr,
    M, OUT_H, OUT_W, channels, tiles_n, tiles_m,
    stride_gn, stride_gh, stride_gw,
    stride_kn, stride_kh, stride_kw,
    stride_rn, stride_rc, stride_rh, stride_rw,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE_M: tl.constexpr, DERIVATIVE: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // tiles_n
    channel_ok = channel < channels
    grad_channel = shuffled(channel, DERIVATIVE.SHUFFLE, DERIVATIVE.OUT_CHANNELS)
    known_channel = shuffled(channel, DERIVATIVE.SHUFFLE_KNOWN, DERIVATIVE.OUT_CHANNELS)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in tl.range(split * tiles_m, (split + 1) * tiles_m):
        m, image, out_h, out_w = decode_pixels(tile, OUT_H, OUT_W, BLOCK_M, WIDE_M)
        mask = (m < M)[:, None] & channel_ok[None, :]
        rows = pixel_offsets(image, out_h, out_w, Strides(stride_gn, 1, stride_gh, stride_gw))
        known_ptrs = None
        if DERIVATIVE.ACTIVATION != "none":
            known_rows = pixel_offsets(image, out_h, out_w, Strides(stride_kn, 1, stride_kh, stride_kw))
            known_ptrs = known_ptr + (known_rows[:, None] + known_channel[None, :])
        grad = load_gradient(dy_ptr + (rows[:, None] + grad_channel[None, :]), known_ptrs, mask, None, DERIVATIVE)
        acc += grad.to(tl.float32)
        if dresidual_ptr is not None:
            target = pixel_offsets(image, out_h, out_w, Strides(stride_rn, 1, stride_rh, stride_rw))
            tl.store(dresidual_ptr + (target[:, None] + (channel * stride_rc)[None, :]), grad, mask=mask)
    if workspace_ptr is not None:
        tl.store(workspace_ptr + split.to(tl.int64) * channels + channel, tl.sum(acc, axis=0), mask=channel_ok)


def plan_channel_sums(
    problem: ConvProblem, operands: Mapping[str, Operand], grad_bias: bool, grad_residual: bool, sm_count: int
) -> Launch:
    """The launch that leaves sums in `workspace`, `[splits, K]` in fp32, or writes `grad_residual`, or both."""
    channels, m = problem.out_channels, problem.batch * math.prod(problem.out_size)
    block_n = min(128, triton.next_power_of_2(channels))
    config = ChannelSumsConfig(block_m=max(1, 2048 // block_n), block_n=block_n)
    tiles, tiles_n = math.ceil(m / config.block_m), math.ceil(channels / block_n)
    splits = max(1, min(tiles, math.ceil(PROGRAMS_PER_SM * sm_count / tiles_n)))
    tiles_m = math.ceil(tiles / splits)
    splits = math.ceil(tiles / tiles_m)
    loading = gradient_arguments(problem, operands)
    residual = operands["grad_residual"]
    integers = (
        Integer.of("M", m),
        Integer.of("OUT_H", problem.out_size[0]),
        Integer.of("OUT_W", problem.out_size[1]),
        Integer.of("channels", channels, stride=True),
        Integer.of("tiles_n", tiles_n),
        Integer.of("tiles_m", tiles_m),
        *loading.integers,
        *(
            Integer.of(f"stride_r{axis}", value, wide=True, stride=True)
            for axis, value in zip("nchw", residual.strides, strict=True)
            if not (axis == "c" and value == 1)
        ),
    )
    buffers = [*loading.buffers]
    constants = {"BLOCK_M": config.block_m, "BLOCK_N": block_n, "WIDE_M": m > INT32_MAX - config.block_m}
    constants |= {"stride_rc": 1} if residual.strides[1] == 1 else {}
    for parameter, wanted, buffer in (
        ("dresidual_ptr", grad_residual, Buffer("dresidual_ptr", residual.buffer, problem.dtype, residual.alignment)),
        ("workspace_ptr", grad_bias, Buffer("workspace_ptr", "workspace", "float32")),
    ):
        if wanted:
            buffers.append(buffer)
        else:
            constants[parameter] = None
    return Launch(
        channel_sums, config, (tiles_n * splits, 1, 1), tuple(buffers), integers, constants | loading.constants, tiles_m
    )


def sum_splits(problem: ConvProblem, splits: int, target: Operand) -> Launch:
    """The launch that adds the splits' sums into the bias's gradient."""
    return plan_sum_of_splits(problem.dtype, problem.out_channels, splits, target)
