"""The packed weight gradient's configuration, what it can run, and the arithmetic of its tiles; no kernel is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MAX_WIDTH = 64
"""Channels of a pack, in and out; wider groups fill the tiles of `weight_grad` by themselves."""
MAX_PRODUCTS = 128
"""Tile products that one step may unroll: kernel rows of a program x kernel columns x strip."""
MAX_ACCUMULATORS = 128
"""fp32 sums per thread above which ptxas spills whatever else there is."""
INT32_MAX = 2**31 - 1


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
        power_of_two(block_k=self.block_k)
        for name in ("pack", "strip", "splits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if self.block_k < 16 or self.rows < 0 or not 0 <= self.max_registers <= 255:
            raise ValueError(
                f"block_k={self.block_k} must be at least 16, rows={self.rows} at least 0, "
                f"max_registers={self.max_registers} in 0..255"
            )
        if self.num_stages != 1:
            raise ValueError(f"num_stages must be 1, but got {self.num_stages}: stages would multiply every tap's tile")

    def __str__(self) -> str:
        words = [f"pack{self.pack}", f"{self.block_k}x{self.strip}", f"w{self.num_warps}"]
        words += [f"rows{self.rows}"] if self.rows else []
        words += [f"r{self.max_registers}"] if self.max_registers else []
        return " ".join(words + ([f"split{self.splits}"] if self.splits > 1 else []))


def block_m(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, _power_of_two_above(config.pack * problem.k_per_group))


def block_n(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Input channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, _power_of_two_above(config.pack * problem.c_per_group))


def _power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length()


def kernel_rows(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Kernel rows of one program."""
    return min(config.rows or problem.kernel_size[0], problem.kernel_size[0])


def columns(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Input columns that a strip reads of each input row."""
    stride, dilation = problem.stride[1], problem.dilation[1]
    return len({u * stride + s * dilation for u in range(config.strip) for s in range(problem.kernel_size[1])})


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
    if problem.direction != "weight_grad":
        return f"packed_weight_grad computes the weight's gradient, not the direction {problem.direction}"
    if not problem.layout.is_uniform:
        return "packed_weight_grad needs equal, consecutive groups"
    width = config.pack * max(problem.c_per_group, problem.k_per_group)
    if width > MAX_WIDTH:
        return f"pack={config.pack} makes a tile {width} channels wide, more than {MAX_WIDTH}"
    if config.pack > 1 and config.pack >= 2 * problem.groups:
        return f"pack={config.pack} is more than twice the {problem.groups} groups"
    taps = kernel_rows(problem, config) * problem.kernel_size[1]
    if taps * config.strip > MAX_PRODUCTS:
        return f"{taps} taps x strip={config.strip} are more than {MAX_PRODUCTS} unrolled products"
    _, steps, packs, parts = grid(problem, config)
    if config.splits > max(steps, 1):
        return f"splits={config.splits} are more than the {steps} steps of {config.block_k} strips"
    if programs(problem, config) > INT32_MAX or steps + steps_each(problem, config) > INT32_MAX:
        return f"{steps} steps of {packs} packs and {parts} parts are more than a grid of {INT32_MAX} counts"
    return None


def why_not_on(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    sums = accumulators(problem, config, device.warp_size)
    most = MAX_ACCUMULATORS * (device.warp_size // 32)
    if sums > most:
        return f"{sums} accumulators per thread spill (at most {most})"
    if device.arch in (90, 100) and block_m(problem, config) >= 64 and config.num_warps % 4 == 0:
        # the unrolled chain of packed_groups on wgmma was found to write sums after the fence that orders them
        return f"{block_m(problem, config)} channels on {config.num_warps} warps compile to an asynchronous product"
    if problem.precision == "tf32" and device.arch == "gfx90a":
        return "gfx90a has no TF32"
    return None


def one_warp(problem: ConvProblem) -> PackedWeightGradConfig:
    """A configuration for one warp: 16 channels where a group has no more, one kernel row at a time."""
    pack = max(1, min(problem.groups, 16 // max(problem.c_per_group, problem.k_per_group)))
    return PackedWeightGradConfig(num_warps=1, pack=pack, block_k=16, rows=1)
