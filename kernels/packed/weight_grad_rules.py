"""The packed weight gradient's configuration, what it can run, and the arithmetic of its tiles; no kernel is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.packed.rules import (
    check_knobs,
    one_warp_pack,
    strip_columns,
    tile_width,
    why_not_packed,
    why_spilled,
)
from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.kernels.values.refusals import INT32_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeightGradConfig(KernelConfig):
    """Blocks and knobs of the packed weight gradient's kernel.

    Attributes:
        pack: adjacent groups multiplied side by side; only the products within a group are stored.
        block_k: strips of output pixels per step: the depth of a product.
        strip: output pixels of one image row that share the reads of their input columns.
        rows: kernel rows whose sums one program holds; 0 for all.
        splits: parts into which the output pixels are divided; a second kernel adds their sums in a fixed order.
        max_registers: registers per thread that the NVIDIA assembler may use; 0 leaves it to it.
    """

    family: ClassVar[str] = "packed_weight_grad"
    direction: ClassVar[str] = "weight_grad"

    num_warps: int = 1
    num_stages: int = 1
    pack: int = 4
    block_k: int = 32
    strip: int = 1
    rows: int = 0
    splits: int = 1
    max_registers: int = 0

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        check_knobs(self, "block_k", ("pack", "strip", "splits"), "rows")

    def __str__(self) -> str:
        words = [f"pack{self.pack}", f"{self.block_k}x{self.strip}", f"w{self.num_warps}"]
        words += [f"rows{self.rows}"] if self.rows else []
        words += [f"r{self.max_registers}"] if self.max_registers else []
        return " ".join(words + ([f"split{self.splits}"] if self.splits > 1 else []))


def block_m(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return tile_width(config.pack * problem.k_per_group)


def block_n(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Input channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return tile_width(config.pack * problem.c_per_group)


def kernel_rows(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Kernel rows of one program."""
    return min(config.rows or problem.kernel_size[0], problem.kernel_size[0])


def columns(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Input columns that a strip reads of each input row."""
    return strip_columns(config.strip, problem.kernel_size[1], problem.stride[1], problem.dilation[1])


def grid(problem: ConvProblem, config: PackedWeightGradConfig) -> tuple[int, int, int, int]:
    """(strips in a row of the output, steps of strips, packs, parts of the kernel's rows)."""
    high, wide = problem.out_size
    strips = math.ceil(wide / config.strip)
    steps = math.ceil(problem.batch * high * strips / config.block_k)
    parts = math.ceil(problem.kernel_size[0] / kernel_rows(problem, config))
    return strips, steps, math.ceil(problem.groups / config.pack), parts


def programs(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Programs of the launch."""
    _, _, packs, parts = grid(problem, config)
    return packs * parts * config.splits


def steps_each(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Steps of one program."""
    _, steps, _, _ = grid(problem, config)
    return math.ceil(steps / config.splits)


def accumulators(problem: ConvProblem, config: PackedWeightGradConfig, warp_size: int) -> int:
    """fp32 sums of one thread. Warps divide the output channels, 16 to each; more warps repeat the work of these."""
    taps = kernel_rows(problem, config) * problem.kernel_size[1]
    tile_m = block_m(problem, config)
    threads = warp_size * min(config.num_warps, tile_m // 16)
    return taps * tile_m * block_n(problem, config) // threads


def why_invalid(problem: ConvProblem, config: PackedWeightGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    wrong = why_not_packed(problem, config, kernel_rows(problem, config) * problem.kernel_size[1])
    if wrong is not None:
        return wrong
    _, steps, packs, parts = grid(problem, config)
    if programs(problem, config) > INT32_MAX or steps + steps_each(problem, config) > INT32_MAX:
        return f"{steps} steps of {packs} packs and {parts} parts are more than a grid of {INT32_MAX} counts"
    return refusals.splits(config.splits, steps, f"{config.block_k} strips")


def why_not_on(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    channels = block_m(problem, config)
    spilled = why_spilled(problem, accumulators(problem, config, device.warp_size), 0, device)
    if spilled is None and device.arch in (90, 100) and channels >= 64 and config.num_warps % 4 == 0:
        # the unrolled chain of packed_groups on wgmma was found to write sums after the fence that orders them
        return f"{channels} channels on {config.num_warps} warps compile to an asynchronous product"
    return spilled


def one_warp(problem: ConvProblem) -> PackedWeightGradConfig:
    """A configuration for one warp: 16 channels where a group has no more, one kernel row at a time."""
    return PackedWeightGradConfig(num_warps=1, pack=one_warp_pack(problem), block_k=16, rows=1)
