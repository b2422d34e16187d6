"""The reasons why a configuration cannot run that several families share, and their limits.

Each function returns one line, or None when there is nothing to refuse; rules join them with `or`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grouped_conv.kernels.values.config import GemmConfig, KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

INT32_MAX = 2**31 - 1
"""The largest value of a 32-bit index, and the most programs of a launch."""
MAX_ACCUMULATORS = 128
"""fp32 sums per thread of a warp of 32 above which ptxas spilled on every architecture tried but sm_100 (compiled)."""

_COMPUTES = {
    "forward": "the forward direction",
    "input_grad": "the input's gradient",
    "weight_grad": "the weight's gradient",
}


def direction(problem: Any, config: KernelConfig) -> str | None:
    """A problem of another direction."""
    if problem.direction == config.direction:
        return None
    return f"{config.family} computes {_COMPUTES[config.direction]}, not the direction {problem.direction}"


def uniform(problem: ConvProblem, config: KernelConfig) -> str | None:
    """A problem of another direction, or with groups that are not equal and consecutive."""
    unequal = None if problem.layout.is_uniform else f"{config.family} needs equal, consecutive groups"
    return direction(problem, config) or unequal


def ragged(problem: ConvProblem, config: KernelConfig) -> str | None:
    """A problem of another direction, with equal and consecutive groups, or with a channel shuffle."""
    wrong = direction(problem, config)
    if wrong is None and problem.layout.is_uniform:
        wrong = f"{config.family} is for unequal, overlapping or listed groups; these are equal and consecutive"
    if wrong is None and (problem.input_shuffle > 1 or problem.epilogue.shuffle > 1):
        wrong = f"{config.family} shuffles no channels; a layout's index lists can say the same of the input"
    return wrong


def grid(programs: int) -> str | None:
    """More programs than a launch can have."""
    return f"{programs} programs are more than a grid of {INT32_MAX}" if programs > INT32_MAX else None


def splits(splits: int, steps: int, step: str) -> str | None:
    """More splits of a weight gradient than it has steps; `step` says what one step takes."""
    return f"splits={splits} are more than the {steps} steps of {step}" if splits > max(steps, 1) else None


def indices(sizes: Mapping[str, int], most: int) -> str | None:
    """Sizes, by what they count, that 32-bit indices cannot hold."""
    return next((f"{size} {name} are more than {most}" for name, size in sizes.items() if size > most), None)


def accumulators(sums: int, device: DeviceSpec) -> str | None:
    """More fp32 sums per thread than registers can hold."""
    most = MAX_ACCUMULATORS * (device.warp_size // 32)
    return f"{sums} accumulators per thread spill (at most {most})" if sums > most else None


def pipelined(problem: ConvProblem, config: GemmConfig, buffers: int, device: DeviceSpec) -> str | None:
    """A tile that spills (not on sm_100), `buffers` that do not fit in shared memory, or TF32 where there is none."""
    sums = config.block_m * config.block_n // (device.warp_size * config.num_warps)
    return (
        (None if device.arch == 100 else accumulators(sums, device))
        or shared_memory(buffers, "pipeline buffers", device)
        or tf32(problem.precision, device)
    )


def shared_memory(needed: int, what: str, device: DeviceSpec) -> str | None:
    """More bytes of shared memory than a program can have."""
    if needed <= device.shared_per_block:
        return None
    return f"{needed} bytes of {what}, {device.key} has {device.shared_per_block} of shared memory"


def tf32(precision: str, device: DeviceSpec) -> str | None:
    """TF32 products where the device has none."""
    return "gfx90a has no TF32" if precision == "tf32" and device.arch == "gfx90a" else None


def wgmma_tf32(problem: ConvProblem, rows: int, config: KernelConfig, device: DeviceSpec) -> str | None:
    """TF32 products of a gradient on wgmma, which takes tiles of 64 `rows` or more on sm_90."""
    if problem.precision != "tf32" or not takes_wgmma(rows, config, device):
        return None
    return "wgmma wants TF32 operands that a gradient's are not: it would copy them 4 bytes at a time"


def takes_wgmma(rows: int, config: KernelConfig, device: DeviceSpec) -> bool:
    """Does sm_90 multiply a tile of so many rows by its asynchronous instruction, on whole groups of 4 warps?"""
    return device.arch == 90 and rows >= 64 and config.num_warps % 4 == 0
