"""Second pass of the input's gradient for groups that share channels: add to each channel the parts of its readers.

Parts are added in the order of the groups, so that results repeat bit by bit.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.device_code.index import decode_pixels
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, stride_integers
from grouped_conv.kernels.passes.configs import RaggedGatherConfig
from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.input_grad_rules import parts_width, positions
from grouped_conv.kernels.values.problem import ConvProblem

TILE = 2048
"""Values of a program: two 16-byte stores of 16-bit values for each of 128 threads."""


@triton.jit
def ragged_gather(
    parts_ptr, positions_ptr, dx_ptr,
    M, IN_H, IN_W, tiles_n, channels, readers, width,
    stride_xn, stride_xc, stride_xh, stride_xw,
    ALIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE_M: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_ok = channel < channels
    m, image, in_h, in_w = decode_pixels(pid // tiles_n, IN_H, IN_W, BLOCK_M, WIDE_M)
    row_ok = m < M
    rows = parts_ptr + m.to(tl.int64) * width
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for reader in tl.range(readers):
        place = tl.load(positions_ptr + reader * channels + channel, mask=channel_ok, other=-1)
        place = tl.max_contiguous(tl.multiple_of(place, ALIGN), ALIGN)
        mask = row_ok[:, None] & (place >= 0)[None, :]  # a run has one reader: true or false as a whole
        acc += tl.load(rows[:, None] + place[None, :], mask=mask, other=0.0)
    x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
    target = dx_ptr + (x_rows[:, None] + (channel * stride_xc)[None, :])
    tl.store(target, acc.to(dx_ptr.dtype.element_ty), mask=row_ok[:, None] & channel_ok[None, :])


def plan_ragged_gather(problem: ConvProblem, target: Operand) -> Launch:
    """The launch that turns `workspace`, `[N, H, W, channels of all groups]` in fp32, into `target`."""
    channels, m = problem.in_channels, problem.batch * math.prod(problem.in_size)
    block_n = min(64, max(16, triton.next_power_of_2(channels)))
    config = RaggedGatherConfig(block_m=TILE // block_n, block_n=block_n)
    tiles_m, tiles_n = math.ceil(m / config.block_m), math.ceil(channels / block_n)
    strides = stride_integers("x", target)
    integers = (
        Integer.of("M", m),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        Integer.of("tiles_n", tiles_n),
        Integer.of("channels", channels, stride=True),
        Integer.of("readers", len(positions(problem.layout))),
        Integer.of("width", parts_width(problem.layout), wide=True, stride=True),
        *strides.integers,
    )
    constants = {
        "ALIGN": traits(problem.layout).in_align,
        "BLOCK_M": config.block_m,
        "BLOCK_N": block_n,
        "WIDE_M": m > INT32_MAX - config.block_m,
        **strides.constants,
    }
    buffers = (
        Buffer("parts_ptr", "workspace", "float32"),
        Buffer("positions_ptr", "part_positions", "int32"),
        Buffer("dx_ptr", target.buffer, problem.dtype, target.alignment),
    )
    return Launch(ragged_gather, config, (tiles_m * tiles_n, 1, 1), buffers, integers, constants)
