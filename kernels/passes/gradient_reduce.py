"""Second pass of a weight gradient: add the splits' parts in a fixed order. Bit-reproducible, no atomics.

Of `scale * conv(x, w)` the weight's gradient is the sum times the scale, and the scale's is `sum(w * sum)` per output
channel, so both come out of this pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.passes.configs import GradientReduceConfig
from grouped_conv.kernels.values.problem import ConvProblem

TILE = 512
"""Weights per step of a program: 4 of each of 128 threads, so that a warp's load of 16 bytes each leaves no gaps."""


@triton.jit
def weight_offsets(row, column, stride_k, stride_c, stride_r, stride_s, CHANNELS: tl.constexpr, KERNEL_W: tl.constexpr):
    """Offsets [BLOCK_M, BLOCK_N] of weights (row, column), columns in (kernel row, kernel column, channel) order."""
    tap = column // CHANNELS
    in_row = (column % CHANNELS) * stride_c + (tap // KERNEL_W) * stride_r + (tap % KERNEL_W) * stride_s
    return (row.to(tl.int64) * stride_k)[:, None] + in_row[None, :]


@triton.jit
def gradient_reduce(
    workspace_ptr, scale_ptr, w_ptr, dw_ptr, dscale_ptr,
    rows, part, splits, tiles_r, steps,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_dk, stride_dc, stride_dr, stride_ds,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, KERNEL_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LINEAR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % tiles_r * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) // tiles_r * steps
    row_ok = row < rows
    # Added up across the loop and summed over columns after it: the sum of a bare product is contracted into fused
    # multiply-adds, in which the lanes that share a row round different terms, and which of them stores is undefined.
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(first, first + steps):
        column = step * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = row_ok[:, None] & (column < DEPTH)[None, :]
        linear = row.to(tl.int64)[:, None] * DEPTH + column[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for split in tl.range(splits):
            acc += tl.load(workspace_ptr + tl.cast(split, tl.int64) * part + linear, mask=mask, other=0.0)
        if dscale_ptr is not None:
            places = weight_offsets(row, column, stride_wk, stride_wc, stride_wr, stride_ws, CHANNELS, KERNEL_W)
            products += acc * tl.load(w_ptr + places, mask=mask, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            acc = acc * tl.load(scale_ptr + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        if LINEAR:
            places = linear
        else:
            places = weight_offsets(row, column, stride_dk, stride_dc, stride_dr, stride_ds, CHANNELS, KERNEL_W)
        tl.store(dw_ptr + places, acc.to(dw_ptr.dtype.element_ty), mask=mask)
    if dscale_ptr is not None:
        total = tl.sum(products, axis=1)
        tl.store(dscale_ptr + row, total.to(dscale_ptr.dtype.element_ty), mask=row_ok)


def plan_gradient_reduce(
    problem: ConvProblem, splits: int, operands: Mapping[str, Operand], grad_scale: bool = False
) -> Launch:
    """The launch that turns `workspace`, `[splits, K, R, S, C / groups]` in fp32, into `grad_weight`.

    Args:
        grad_scale: also write the gradient of the scale, which the problem then has.

    Raises:
        ValueError: if `grad_scale` is true and the problem has no scale.
    """
    if grad_scale and not problem.epilogue.scale:
        raise ValueError(f"{problem} has no scale whose gradient could be computed")
    return _plan(
        problem.dtype,
        problem.out_channels,
        (*problem.kernel_size, problem.c_per_group),
        splits,
        operands["grad_weight"],
        scale=operands["scale"] if problem.epilogue.scale else None,
        weight=operands["weight"] if grad_scale else None,
        target_scale=operands["grad_scale"] if grad_scale else None,
    )


def plan_sum_of_splits(dtype: str, rows: int, splits: int, target: Operand) -> Launch:
    """The launch that turns `workspace`, `[splits, rows]` in fp32, into the vector `target`."""
    return _plan(dtype, rows, (1, 1, 1), splits, target)


def _plan(
    dtype: str,
    rows: int,
    window: tuple[int, int, int],
    splits: int,
    target: Operand,
    *,
    scale: Operand | None = None,
    weight: Operand | None = None,
    target_scale: Operand | None = None,
) -> Launch:
    kernel_h, kernel_w, channels = window
    depth = kernel_h * kernel_w * channels
    block_n = min(TILE, triton.next_power_of_2(depth))
    config = GradientReduceConfig(block_m=max(1, TILE // block_n // (1 if block_n > 1 else 8)), block_n=block_n)
    tiles_r, tiles_c = math.ceil(rows / config.block_m), math.ceil(depth / config.block_n)
    steps = 1 if weight is None else tiles_c  # a channel's products are summed by one program
    absent = Operand((1, 1, 1, 1))
    strides = (("w", weight or absent), ("d", target))
    integers = (
        Integer.of("rows", rows),
        Integer.of("part", rows * depth, wide=True, stride=True),
        Integer.of("splits", splits),
        Integer.of("tiles_r", tiles_r),
        Integer.of("steps", steps),
        *(
            Integer.of(f"stride_{letter}{axis}", value, wide=True, stride=True)
            for letter, operand in strides
            for axis, value in zip("kcrs", operand.strides, strict=True)
        ),
    )
    present = {
        "scale_ptr": scale,
        "w_ptr": weight,
        "dw_ptr": target,
        "dscale_ptr": target_scale,
    }
    buffers = [
        Buffer(parameter, operand.buffer, dtype, operand.alignment)
        for parameter, operand in present.items()
        if operand is not None
    ]
    linear = (depth, 1, kernel_w * channels, channels)
    sizes = (rows, channels, kernel_h, kernel_w)
    constants = {
        "DEPTH": depth,
        "CHANNELS": channels,
        "KERNEL_W": kernel_w,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "LINEAR": all(
            have == want or size == 1 for have, want, size in zip(target.strides, linear, sizes, strict=True)
        ),
        **{parameter: None for parameter, operand in present.items() if operand is None},
    }
    return Launch(
        gradient_reduce,
        config,
        (tiles_r * (tiles_c // steps), 1, 1),
        (Buffer("workspace_ptr", "workspace", "float32"), *buffers),
        integers,
        constants,
        steps,
    )
