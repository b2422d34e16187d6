"""What the rules of the three packed kernels share: the width of a tile, the columns of a strip, and refusals.

Each kernel multiplies `pack` adjacent groups side by side and computes `strip` neighbouring pixels of a row together,
with one unrolled product for each tap and pixel of a strip.
"""

from __future__ import annotations

from typing import Any

from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MAX_WIDTH = 64
"""Channels of a tile, in and out: at 64 a layer of 4 channels per group already issues 16 products for each useful one.

Wider groups fill the tiles of the implicit GEMM by themselves.
"""
MAX_PRODUCTS = 128
"""Tile products that one step may unroll (taps x strip); a 5x5 kernel with a strip of 4 has 100 and compiles in 5 s."""


def check_knobs(config: KernelConfig, block: str, counts: tuple[str, ...], optional: str) -> None:
    """Refuse values that no packed kernel can have.

    Args:
        block: the field that is a power of two of at least 16.
        counts: fields of at least 1.
        optional: the field of at least 0.

    Raises:
        ValueError: naming the field.
    """
    values: Any = config
    power_of_two(**{block: getattr(config, block)})
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, but got {getattr(config, name)}")
    size, other, registers = getattr(config, block), getattr(config, optional), values.max_registers
    if size < 16 or other < 0 or not 0 <= registers <= 255:
        raise ValueError(
            f"{block}={size} must be at least 16, {optional}={other} at least 0, max_registers={registers} in 0..255"
        )
    if config.num_stages != 1:
        raise ValueError(f"num_stages must be 1, but got {config.num_stages}: stages would multiply every tap's tile")


def tile_width(channels: int) -> int:
    """Channels of a tile for a pack of so many: rounded up to a power of two of at least 16."""
    return max(16, 1 << (channels - 1).bit_length())


def strip_columns(strip: int, taps: int, stride: int, dilation: int) -> int:
    """Columns that `strip` neighbouring pixels read of each row, `taps` each: shared ones count once."""
    return len({u * stride + s * dilation for u in range(strip) for s in range(taps)})


def why_not_packed(problem: ConvProblem, config: Any, taps: int) -> str | None:
    """Why no packed kernel can run `config`, which unrolls `taps` taps for each pixel of a strip; `None` if one can."""
    wrong = refusals.uniform(problem, config)
    if wrong is not None:
        return wrong
    width = config.pack * max(problem.c_per_group, problem.k_per_group)
    if width > MAX_WIDTH:
        return f"pack={config.pack} makes a tile {width} channels wide, more than {MAX_WIDTH}"
    if config.pack > 1 and config.pack >= 2 * problem.groups:
        return f"pack={config.pack} is more than twice the {problem.groups} groups"
    if taps * config.strip > MAX_PRODUCTS:
        return f"{taps} taps x strip={config.strip} are more than {MAX_PRODUCTS} unrolled products"
    return None


def why_spilled(problem: ConvProblem, sums: int, needed: int, device: DeviceSpec) -> str | None:
    """Too many `sums` per thread, `needed` bytes that do not fit (NVIDIA only), or TF32 where there is none."""
    return (
        refusals.accumulators(sums, device)
        or (refusals.shared_memory(needed, "operands", device) if device.backend == "cuda" else None)
        or refusals.tf32(problem.precision, device)
    )


def one_warp_pack(problem: ConvProblem) -> int:
    """Groups that fill 16 channels, for small configurations."""
    return max(1, min(problem.groups, 16 // max(problem.c_per_group, problem.k_per_group)))
