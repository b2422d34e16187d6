"""Second pass of a split reduction: add the parts in a fixed order, then the epilogue. Bit-reproducible, no atomics."""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Epilogue, Strides
from grouped_conv.kernels.device_code.epilogue import add_residual, affine, finish, pixel_offsets
from grouped_conv.kernels.device_code.index import decode_pixels
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import (
    Operand,
    epilogue_arguments,
    stride_integers,
)
from grouped_conv.kernels.passes.configs import ReduceConfig
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def split_reduce(
    workspace_ptr, scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr,
    M, OUT_H, OUT_W, tiles_m, out_channels,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_rn, stride_rc, stride_rh, stride_rw,
    SPLIT_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE_M: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    m, image, out_h, out_w = decode_pixels(pid % tiles_m, OUT_H, OUT_W, BLOCK_M, WIDE_M)
    channel = pid // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = m < M
    channel_ok = channel < out_channels
    mask = row_ok[:, None] & channel_ok[None, :]
    offsets = m.to(tl.int64)[:, None] * out_channels + channel[None, :]
    part = tl.cast(M, tl.int64) * out_channels
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for split in tl.static_range(SPLIT_K):
        acc += tl.load(workspace_ptr + (split * part + offsets), mask=mask, other=0.0)
    acc = affine(acc, scale_ptr, bias_ptr, channel, channel_ok)
    if residual_ptr is not None:
        r_rows = pixel_offsets(image, out_h, out_w, Strides(stride_rn, 1, stride_rh, stride_rw))
        acc = add_residual(acc, residual_ptr, r_rows, channel, stride_rc, row_ok, channel_ok)
    y_rows = pixel_offsets(image, out_h, out_w, Strides(stride_yn, 1, stride_yh, stride_yw))
    epilogue = Epilogue(None, None, None, pre_ptr, y_ptr, stride_yc, 1)
    finish(acc, epilogue, y_rows, None, row_ok, channel, channel_ok, FINISH)


def plan_split_reduce(problem: ConvProblem, split_k: int, operands: Mapping[str, Operand]) -> Launch:
    """The launch that turns `workspace`, [split_k, M, out_channels] in fp32, into the output."""
    _, m, _, _ = problem.gemm
    config = ReduceConfig()
    tiles_m = math.ceil(m / config.block_m)
    tiles_n = math.ceil(problem.out_channels / config.block_n)
    finishing = epilogue_arguments(problem, operands)
    strides = stride_integers("r", operands.get("residual")), stride_integers("y", operands["output"])
    integers = (
        Integer.of("M", m),
        Integer.of("OUT_H", problem.out_size[0]),
        Integer.of("OUT_W", problem.out_size[1]),
        Integer.of("tiles_m", tiles_m),
        Integer.of("out_channels", problem.out_channels, stride=True),
        *(integer for pair in strides for integer in pair.integers),
    )
    constants = {
        "SPLIT_K": split_k,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "WIDE_M": m > INT32_MAX - config.block_m,
        **finishing.constants,
        **{name: value for pair in strides for name, value in pair.constants.items()},
    }
    buffers = (Buffer("workspace_ptr", "workspace", "float32"), *finishing.buffers)
    return Launch(split_reduce, config, (tiles_m * tiles_n, 1, 1), buffers, integers, constants, split_k)
