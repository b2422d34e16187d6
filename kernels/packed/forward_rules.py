"""The packed-groups family's configuration, what it can run, and the arithmetic of its tiles; loads no kernel."""

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
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.kernels.values.refusals import INT32_MAX


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
        isolate: keep Inf and NaN of one group out of the other groups of its pack, as torch does.
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
        check_knobs(self, "block_m", ("pack", "strip", "tiles_per_program"), "rows_ahead")
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
    return tile_width(config.pack * problem.c_per_group)


def block_n(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return tile_width(config.pack * problem.k_per_group)


def columns(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Input columns that a strip reads of each input row."""
    return strip_columns(config.strip, problem.kernel_size[1], problem.stride[1], problem.dilation[1])


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
    wrong = why_not_packed(problem, config, problem.taps if config.resident else 1)
    if wrong is not None:
        return wrong
    _, tiles, packs = grid(problem, config)
    if programs(problem, config) > INT32_MAX or tiles * config.tiles_per_program > INT32_MAX:
        return f"{tiles} tiles of {packs} packs are more than a grid of {INT32_MAX} counts"
    return None


def why_not_on(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    if device.arch == 90 and config.block_m >= 64 and config.num_warps % 4 == 0:
        # found by executing the PTX: the unrolled chain writes sums after the fence that orders them
        return f"block_m={config.block_m} on {config.num_warps} warps compiles to wgmma, which races with its sums"
    sums = config.block_m * block_n(problem, config) * config.strip // (device.warp_size * config.num_warps)
    return why_spilled(problem, sums, shared_memory(problem, config), device)


def one_warp(problem: ConvProblem) -> PackedGroupsConfig:
    """A configuration for one warp: at most 64 columns, nothing unrolled."""
    return PackedGroupsConfig(
        num_warps=1, block_m=32, pack=one_warp_pack(problem), strip=1, tiles_per_program=4, resident=False
    )
