"""The pass that moves channels innermost: NCHW activations to channels_last, KCRS weights to KRSC."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.passes.configs import PackConfig


@triton.jit
def pack_channels_last(
    source_ptr, target_ptr, channels, positions, width, tiles_p, tiles_c,
    stride_n, stride_c, stride_h, stride_w,
    PLANAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    image = (pid // (tiles_p * tiles_c)).to(tl.int64)
    p = (pid % tiles_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (pid // tiles_p % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (p < positions)[:, None] & (c < channels)[None, :]
    if PLANAR:  # positions are consecutive in memory: say so, and the loads coalesce along them
        p_offsets = p.to(tl.int64)
    else:
        p_offsets = (p // width).to(tl.int64) * stride_h + (p % width).to(tl.int64) * stride_w
    source = source_ptr + image * stride_n + p_offsets[:, None] + (c.to(tl.int64) * stride_c)[None, :]
    tile = tl.load(source, mask=mask, other=0.0)  # [BLOCK_P, BLOCK_C]
    target = target_ptr + image * positions * channels + (p.to(tl.int64) * channels)[:, None] + c[None, :]
    tl.store(target, tile, mask=mask)


def plan_pack(
    source: Operand, target: str, shape: tuple[int, int, int, int], dtype: str, target_dtype: str = ""
) -> Launch:
    """The launch that writes the tensor of `shape` (N, C, H, W) from `source` to buffer `target` as channels_last.

    Args:
        target_dtype: what the values are converted to; by default they keep `dtype`.
    """
    batch, channels, height, width = shape
    block_c = min(64, max(16, triton.next_power_of_2(channels)))
    config = PackConfig(block_p=64, block_c=block_c)
    positions = height * width
    tiles_p, tiles_c = math.ceil(positions / config.block_p), math.ceil(channels / config.block_c)
    planar = source.strides[3] == 1 and (source.strides[2] == width or height == 1)
    integers = (
        Integer.of("channels", channels, stride=True),
        Integer.of("positions", positions),
        Integer.of("width", width),
        Integer.of("tiles_p", tiles_p),
        Integer.of("tiles_c", tiles_c),
        *(
            Integer.of(f"stride_{axis}", value, wide=True, stride=True)
            for axis, value in zip("nchw", source.strides, strict=True)
        ),
    )
    buffers = (
        Buffer("source_ptr", source.buffer, dtype, source.alignment),
        Buffer("target_ptr", target, target_dtype or dtype),
    )
    constants = {"PLANAR": planar, "BLOCK_P": config.block_p, "BLOCK_C": config.block_c}
    return Launch(pack_channels_last, config, (tiles_p * tiles_c * batch, 1, 1), buffers, integers, constants)
