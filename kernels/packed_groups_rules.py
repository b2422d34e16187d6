"""The packed-groups family's configuration, what it can run, and the arithmetic of its tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.problem import ConvProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedGroupsConfig(KernelConfig):
    """Blocks and knobs of the packed-groups kernel.

    Attributes:
        block_m: strips per tile.
        pack: adjacent groups multiplied side by side.
        strip: output pixels of one image row that share the reads of their input columns.
        tiles_per_program: tiles that one program computes with the same weights.
        resident: keep the weights of all taps on chip; otherwise they are read again for each tap, and strip is 1.
        rows_ahead: rows of the window whose loads are under way before the first row is multiplied.
        isolate: keep Inf and NaN of one group out of the groups beside it, as torch does.
    """

    family: ClassVar[str] = "packed_groups"

    block_m: int = 32
    pack: int = 8
    strip: int = 4
    tiles_per_program: int = 4
    resident: bool = True
    rows_ahead: int = 1
    isolate: bool = True


def block_k(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Input channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, power_of_two_above(config.pack * problem.c_per_group))


def block_n(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Output channels of a tile: the pack's, rounded up to a power of two of at least 16."""
    return max(16, power_of_two_above(config.pack * problem.k_per_group))


def power_of_two_above(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()


def grid(problem: ConvProblem, config: PackedGroupsConfig) -> tuple[int, int, int]:
    """(strips in a row of the output, tiles of strips, packs)."""
    high, wide = problem.out_size
    strips = math.ceil(wide / config.strip)
    return strips, math.ceil(problem.batch * high * strips / config.block_m), math.ceil(problem.groups / config.pack)
