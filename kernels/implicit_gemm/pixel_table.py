"""The pass that writes a table of output pixels, which tells a weight gradient where each window is in the input.

Entry m, of the output pixels of all images in order, is one int64. Its lower half is the offset of the window's first
element, as if there were no padding. Its upper half says which taps are inside the image: bit r for kernel row r, bit
16 + s for kernel column s. Entries past the last pixel have no bits, so that a loop over whole steps needs no mask.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Taps
from grouped_conv.kernels.device_code.index import decode_pixels, tap_bits
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig, pixels, table_entries
from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch, power_of_two_divisor
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.passes.configs import PixelTableConfig
from grouped_conv.kernels.values.problem import ConvProblem

TABLE = "pixel_table"
NO_TAP = tl.constexpr(1 << 15)  # a bit that no pixel has: kernels have at most 15 rows here


@triton.jit
def taps_needed(row, column, ok):
    """The bits that a pixel must have for the tap (row, column) to be inside; one that none has where not `ok`."""
    return tl.where(ok, (1 << (row & 15)) | (1 << (16 + (column & 15))), NO_TAP)


@triton.jit
def entry_offset(entry, DIVISOR: tl.constexpr):
    """The offset of an entry's window; DIVISOR divides it, which lets later loads be wide."""
    return tl.multiple_of(entry.to(tl.int32), DIVISOR)


@triton.jit
def entry_has(entry, needed):
    """Are all bits of `needed`, [1, BLOCK_N], among those of an entry, [BLOCK_K]?"""
    word = (entry >> 32).to(tl.int32)
    return (needed & ~word[:, None]) == 0


@triton.jit
def pixel_table(
    table_ptr, M, entries, IN_H, IN_W, OUT_H, OUT_W, stride_xn, stride_xh, stride_xw,
    WINDOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m, image, out_h, out_w = decode_pixels(tl.program_id(0), OUT_H, OUT_W, BLOCK, False)
    in_h = out_h * WINDOW.STRIDE_H
    in_w = out_w * WINDOW.STRIDE_W
    TAPS: tl.constexpr = Taps(WINDOW.KERNEL_H, WINDOW.KERNEL_W, WINDOW.DILATION_H, WINDOW.DILATION_W, "row_column")
    bits = tap_bits(in_h - WINDOW.PAD_H, in_w - WINDOW.PAD_W, IN_H, IN_W, TAPS)
    bits = tl.where(m < M, tl.reshape(bits, (BLOCK,)), 0)
    offset = image * stride_xn + in_h * stride_xh + in_w * stride_xw  # not negative, below 2^31
    entry = (bits.to(tl.int64) << 32) | offset.to(tl.int64)
    tl.store(table_ptr + m, entry, mask=m < entries)


def plan_pixel_table(problem: ConvProblem, config: WeightGradConfig, x: Operand) -> Launch:
    """The launch that writes the buffer `TABLE` for an input with the strides of `x`, whose offsets fit 32 bits."""
    tile = PixelTableConfig()
    entries = table_entries(problem, config)
    integers = (
        Integer.of("M", pixels(problem)),
        Integer.of("entries", entries, stride=True),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        *(Integer.of(f"stride_x{axis}", x.strides[index]) for index, axis in ((0, "n"), (2, "h"), (3, "w"))),
    )
    constants = {
        "WINDOW": window_constant(problem),
        "BLOCK": tile.block,
    }
    buffers = (Buffer("table_ptr", TABLE, "int64"),)
    return Launch(pixel_table, tile, (math.ceil(entries / tile.block), 1, 1), buffers, integers, constants)


def offset_divisor(x: Operand, stride: tuple[int, int]) -> int:
    """The largest power of two up to 16 that divides every offset in the table."""
    steps = (x.strides[0], stride[0] * x.strides[2], stride[1] * x.strides[3])
    return min(power_of_two_divisor(step) for step in steps)
