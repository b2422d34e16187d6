"""The packed input gradient's configuration, what it can run, and the arithmetic of its tiles; no kernel is loaded.

As in `input_grad_rules`, input pixels with the same remainders by the stride are one class, reached by the same taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.implicit_gemm.input_grad_rules import class_size, class_step, most_taps
from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem, Pair

MAX_WIDTH = 64
"""Channels of a tile, in and out."""
MAX_PRODUCTS = 128
"""Tile products that a tile may unroll: taps of a class x strip."""
MAX_ACCUMULATORS = 128
"""fp32 sums per thread above which ptxas spills whatever else there is."""
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInputGradConfig(KernelConfig):
    """Blocks and knobs of the packed input gradient's kernel.

    Attributes:
        block_m: strips per tile.
        pack: adjacent groups multiplied side by side.
        strip: neighbouring input pixels of one class and row that share the reads of the output's gradient.
        tiles_per_program: tiles that one program computes with the same weights.
        rows_ahead: rows of the window whose loads are under way before the first row is multiplied.
        max_registers: registers per thread that the NVIDIA assembler may use; 0 leaves it to it.
    """

    family: ClassVar[str] = "packed_input_grad"
    direction: ClassVar[str] = "input_grad"

    num_warps: int = 2
    num_stages: int = 1
    block_m: int = 32
    pack: int = 4
    strip: int = 4
    tiles_per_program: int = 8
    rows_ahead: int = 1
    max_registers: int = 0

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_m=self.block_m)
        for name in ("pack", "strip", "tiles_per_program"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if self.block_m < 16 or self.rows_ahead < 0 or not 0 <= self.max_registers <= 255:
            raise ValueError(
                f"block_m={self.block_m} must be at least 16, rows_ahead={self.rows_ahead} at least 0, "
                f"max_registers={self.max_registers} in 0..255"
            )
        if self.num_stages != 1:
            raise ValueError(f"num_stages must be 1, but got {self.num_stages}: stages would multiply every tap's tile")

    def __str__(self) -> str:
        words = [f"pack{self.pack}", f"{self.block_m}x{self.strip}", f"w{self.num_warps}", f"t{self.tiles_per_program}"]
        words += [f"ahead{self.rows_ahead}"] if self.rows_ahead != 1 else []
        return " ".join(words + ([f"r{self.max_registers}"] if self.max_registers else []))


def block_k(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, _power_of_two_above(config.pack * problem.k_per_group))


def block_n(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Input channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, _power_of_two_above(config.pack * problem.c_per_group))


def _power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length()


def back(problem: ConvProblem) -> Pair:
    """Output rows and columns from one tap of a class to the next."""
    high, wide = (
        dilation * class_step(stride, dilation) // stride
        for stride, dilation in zip(problem.stride, problem.dilation, strict=True)
    )
    return high, wide


def columns(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Output columns that a strip reads of each output row."""
    (_, apart), (_, taps) = back(problem), most_taps(problem)
    return len({u + s * apart for u in range(config.strip) for s in range(taps)})


def grid(problem: ConvProblem, config: PackedInputGradConfig) -> tuple[int, int, int]:
    """(strips in a row of the largest class, tiles of strips of a class, packs)."""
    high, wide = class_size(problem)
    strips = math.ceil(wide / config.strip)
    return strips, math.ceil(problem.batch * high * strips / config.block_m), math.ceil(problem.groups / config.pack)


def programs(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Programs of the launch."""
    _, tiles, packs = grid(problem, config)
    return math.ceil(tiles / config.tiles_per_program) * packs * math.prod(problem.stride)


def shared_memory(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Bytes of shared memory on NVIDIA: the rows in flight, and all taps' weights."""
    k, n = block_k(problem, config), block_n(problem, config)
    high, wide = most_taps(problem)
    rows = min(config.rows_ahead + 1, high)
    return (rows * columns(problem, config) * config.block_m * k + high * wide * k * n) * problem.item_size


def why_invalid(problem: ConvProblem, config: PackedInputGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    if problem.direction != "input_grad":
        return f"packed_input_grad computes the input's gradient, not the direction {problem.direction}"
    if not problem.layout.is_uniform:
        return "packed_input_grad needs equal, consecutive groups"
    width = config.pack * max(problem.c_per_group, problem.k_per_group)
    if width > MAX_WIDTH:
        return f"pack={config.pack} makes a tile {width} channels wide, more than {MAX_WIDTH}"
    if config.pack > 1 and config.pack >= 2 * problem.groups:
        return f"pack={config.pack} is more than twice the {problem.groups} groups"
    taps = math.prod(most_taps(problem))
    if taps * config.strip > MAX_PRODUCTS:
        return f"{taps} taps x strip={config.strip} are more than {MAX_PRODUCTS} unrolled products"
    _, tiles, packs = grid(problem, config)
    if programs(problem, config) > INT32_MAX or tiles + config.tiles_per_program > INT32_MAX:
        return f"{tiles} tiles of {packs} packs are more than a grid of {INT32_MAX} counts"
    return None


def why_not_on(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    sums = config.block_m * block_n(problem, config) * config.strip // (device.warp_size * config.num_warps)
    most = MAX_ACCUMULATORS * (device.warp_size // 32)
    if sums > most:
        return f"{sums} accumulators per thread spill (at most {most})"
    if device.arch in (90, 100) and config.block_m >= 64 and config.num_warps % 4 == 0:
        # the unrolled chain of packed_groups on wgmma was found to write sums after the fence that orders them
        return f"block_m={config.block_m} on {config.num_warps} warps compiles to an asynchronous product"
    needed = shared_memory(problem, config)
    if device.backend == "cuda" and needed > device.shared_per_block:
        return f"{needed} bytes of shared memory, {device.key} has {device.shared_per_block}"
    if problem.precision == "tf32" and device.arch == "gfx90a":
        return "gfx90a has no TF32"
    return None


def one_warp(problem: ConvProblem) -> PackedInputGradConfig:
    """A configuration for one warp: 16 channels where a group has no more, one pixel at a time."""
    pack = max(1, min(problem.groups, 16 // max(problem.c_per_group, problem.k_per_group)))
    return PackedInputGradConfig(num_warps=1, block_m=16, pack=pack, strip=1, tiles_per_program=4)
