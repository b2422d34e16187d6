"""The packed-groups family's configuration, what it can run, and the arithmetic of its tiles; loads no kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MAX_WIDTH = 64
"""Channels of a tile: at 64 a layer of 4 channels per group already issues 16 products for each useful one."""
MAX_PRODUCTS = 128
"""Tile products that a tile may unroll (taps x strip); a 5x5 kernel with a strip of 4 has 100 and compiles in 5 s."""
MAX_ACCUMULATORS = 128
"""fp32 sums per thread above which ptxas spills whatever else there is."""
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedGroupsConfig(KernelConfig):
    """Blocks and knobs of the packed-groups kernel.

    Attributes:
        block_m: strips per tile.
        pack: adjacent groups multiplied side by side.
        strip: output pixels of one image row that share the reads of their input columns. A 3x3 layer of 4 channels per
            group takes 16.3, 12.4 and 10.3 instructions per output on sm_80 with strips of 2, 4 and 7.
        tiles_per_program: tiles that one program computes with the same weights.
        resident: keep the weights of all taps on chip; otherwise they are read again for each tap, and strip is 1.
        rows_ahead: rows of the window whose loads are under way before the first row is multiplied.
        isolate: keep Inf and NaN of one group out of the groups beside it, as torch does.
        max_registers: registers per thread that the NVIDIA assembler may use; 0 leaves it to it. Left alone it spills 8
            to 24 bytes around the branch for non-finite values to fit one more program on a multiprocessor.
    """

    family: ClassVar[str] = "packed_groups"

    num_warps: int = 2
    block_m: int = 32
    pack: int = 4
    strip: int = 4
    tiles_per_program: int = 8
    resident: bool = True
    rows_ahead: int = 1
    isolate: bool = True
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
        if self.strip > 1 and not self.resident:
            raise ValueError(f"strip={self.strip} needs resident weights")

    def __str__(self) -> str:
        words = [f"pack{self.pack}", f"{self.block_m}x{self.strip}", f"w{self.num_warps}", f"t{self.tiles_per_program}"]
        words += [] if self.resident else ["reload"]
        words += [f"ahead{self.rows_ahead}"] if self.rows_ahead != 1 else []
        words += [f"r{self.max_registers}"] if self.max_registers else []
        return " ".join(words + ([] if self.isolate else ["leaky"]))


def block_k(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Input channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, _power_of_two_above(config.pack * problem.c_per_group))


def block_n(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, _power_of_two_above(config.pack * problem.k_per_group))


def _power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length()


def columns(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Input columns that a strip reads of each input row."""
    stride, dilation = problem.stride[1], problem.dilation[1]
    return len({u * stride + s * dilation for u in range(config.strip) for s in range(problem.kernel_size[1])})


def grid(problem: ConvProblem, config: PackedGroupsConfig) -> tuple[int, int, int]:
    """(strips in a row of the output, tiles of strips, packs)."""
    high, wide = problem.out_size
    strips = math.ceil(wide / config.strip)
    return strips, math.ceil(problem.batch * high * strips / config.block_m), math.ceil(problem.groups / config.pack)


def programs(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Programs of the launch."""
    _, tiles, packs = grid(problem, config)
    return math.ceil(tiles / config.tiles_per_program) * packs


def isolates(config: PackedGroupsConfig) -> bool:
    """Is there anything to isolate? A pack of one group has no neighbours."""
    return config.isolate and config.pack > 1


def shared_memory(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Bytes of shared memory on NVIDIA: the rows in flight, and all taps' weights (exact for 16-bit 3x3 layers)."""
    k, n = block_k(problem, config), block_n(problem, config)
    if not config.resident:
        return (config.block_m + n) * k * problem.item_size
    rows = min(config.rows_ahead + 1, problem.kernel_size[0])
    return (rows * columns(problem, config) * config.block_m * k + problem.taps * k * n) * problem.item_size


def why_invalid(problem: ConvProblem, config: PackedGroupsConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    if problem.direction != "forward":
        return f"packed_groups computes the forward direction, not {problem.direction}"
    if not problem.layout.is_uniform:
        return "packed_groups needs equal, consecutive groups"
    width = config.pack * max(problem.c_per_group, problem.k_per_group)
    if width > MAX_WIDTH:
        return f"pack={config.pack} makes a tile {width} channels wide, more than {MAX_WIDTH}"
    if config.pack > 1 and config.pack >= 2 * problem.groups:
        return f"pack={config.pack} is more than twice the {problem.groups} groups"
    if config.resident and problem.taps * config.strip > MAX_PRODUCTS:
        return f"{problem.taps} taps x strip={config.strip} are more than {MAX_PRODUCTS} unrolled products"
    _, tiles, packs = grid(problem, config)
    if programs(problem, config) > INT32_MAX or tiles * config.tiles_per_program > INT32_MAX:
        return f"{tiles} tiles of {packs} packs are more than a grid of {INT32_MAX} counts"
    return None


def why_not_on(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    sums = config.block_m * block_n(problem, config) * config.strip // (device.warp_size * config.num_warps)
    most = MAX_ACCUMULATORS * (device.warp_size // 32)
    if sums > most:
        return f"{sums} accumulators per thread spill (at most {most})"
    if device.arch == 90 and config.block_m >= 64 and config.num_warps % 4 == 0:
        # found by executing the PTX: the unrolled chain writes sums after the fence that orders them
        return f"block_m={config.block_m} on {config.num_warps} warps compiles to wgmma, which races with its sums"
    needed = shared_memory(problem, config)
    if device.backend == "cuda" and needed > device.shared_per_block:
        return f"{needed} bytes of shared memory, {device.key} has {device.shared_per_block}"
    if problem.precision == "tf32" and device.arch == "gfx90a":
        return "gfx90a has no TF32"
    return None


def one_warp(problem: ConvProblem) -> PackedGroupsConfig:
    """A configuration for one warp: at most 64 columns, nothing unrolled."""
    pack = max(1, min(problem.groups, 16 // max(problem.c_per_group, problem.k_per_group)))
    return PackedGroupsConfig(num_warps=1, block_m=32, pack=pack, strip=1, tiles_per_program=4, resident=False)
