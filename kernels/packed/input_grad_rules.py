"""The packed input gradient's configuration, what it can run, and the arithmetic of its tiles; no kernel is loaded.

As in `input_grad_rules`, input pixels with the same remainders by the stride are one class, reached by the same taps.
"""

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
from grouped_conv.kernels.values.classes import class_size, class_step, most_taps
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem, Pair
from grouped_conv.kernels.values.refusals import INT32_MAX


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
        check_knobs(self, "block_m", ("pack", "strip", "tiles_per_program"), "rows_ahead")

    def __str__(self) -> str:
        words = [f"pack{self.pack}", f"{self.block_m}x{self.strip}", f"w{self.num_warps}", f"t{self.tiles_per_program}"]
        words += [f"ahead{self.rows_ahead}"] if self.rows_ahead != 1 else []
        return " ".join(words + ([f"r{self.max_registers}"] if self.max_registers else []))


def block_k(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return tile_width(config.pack * problem.k_per_group)


def block_n(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Input channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return tile_width(config.pack * problem.c_per_group)


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
    return strip_columns(config.strip, taps, 1, apart)


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
    wrong = why_not_packed(problem, config, math.prod(most_taps(problem)))
    if wrong is not None:
        return wrong
    _, tiles, packs = grid(problem, config)
    if programs(problem, config) > INT32_MAX or tiles + config.tiles_per_program > INT32_MAX:
        return f"{tiles} tiles of {packs} packs are more than a grid of {INT32_MAX} counts"
    return None


def why_not_on(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    sums = config.block_m * block_n(problem, config) * config.strip // (device.warp_size * config.num_warps)
    spilled = why_spilled(problem, sums, shared_memory(problem, config), device)
    if spilled is None and device.arch in (90, 100) and config.block_m >= 64 and config.num_warps % 4 == 0:
        # the unrolled chain of packed_groups on wgmma was found to write sums after the fence that orders them
        return f"block_m={config.block_m} on {config.num_warps} warps compiles to an asynchronous product"
    return spilled


def one_warp(problem: ConvProblem) -> PackedInputGradConfig:
    """A configuration for one warp: 16 channels where a group has no more, one pixel at a time."""
    return PackedInputGradConfig(num_warps=1, block_m=16, pack=one_warp_pack(problem), strip=1, tiles_per_program=4)
