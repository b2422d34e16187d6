"""The weight gradient's tiles, splits and valid configurations; no kernel is loaded here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import GemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

WORKSPACE_BYTES = 256 * 2**20
"""How large the partial sums may be unless the caller says otherwise; fewer splits keep a call below it."""

ENTRY_BYTES = 8
"""Of the table of pixels: an offset and a word of taps."""
TABLE_KERNEL = (15, 16)
"""Rows and columns of the largest kernel whose taps have bits in a table's word; one more bit means no tap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGradConfig(GemmConfig):
    """Block sizes of the weight gradient's kernel.

    Attributes:
        block_m: output channels of one group per tile.
        block_n: weights of one output channel per tile, in (kernel row, kernel column, channel) order.
        block_k: output pixels that one step of the reduction takes.
        splits: parts into which the output pixels are divided; a second kernel adds their sums in a fixed order.
        pixel_table: read the positions of pixels' windows from a table, do not compute them at every step. A 128x128x64
            step of 8 warps then has 211 to 214 instructions instead of 252 to 256 on sm_80, 118 to 125 instead of 173
            to 180 on sm_90. Costs a launch that writes 8 bytes per output pixel, and reading them once per tile.
            Calls whose offsets need 64 bits ignore it.
    """

    family: ClassVar[str] = "weight_grad"
    direction: ClassVar[str] = "weight_grad"

    block_m: int = 64
    block_n: int = 128
    block_k: int = 32
    splits: int = 1
    pixel_table: bool = False

    def __post_init__(self) -> None:
        GemmConfig.__post_init__(self)
        if self.splits < 1:
            raise ValueError(f"splits must be at least 1, but got {self.splits}")

    def __str__(self) -> str:
        words = [GemmConfig.__str__(self)]
        words += [f"split{self.splits}"] if self.splits > 1 else []
        return " ".join(words + (["table"] if self.pixel_table else []))


def pixels(problem: ConvProblem) -> int:
    """Output pixels of all images: the depth of the reduction."""
    return problem.batch * math.prod(problem.out_size)


def tiles(problem: ConvProblem, config: WeightGradConfig) -> tuple[int, int, int]:
    """(channel tiles of one group, weight tiles of a channel, programs of the launch)."""
    tiles_m = math.ceil(problem.k_per_group / config.block_m)
    tiles_n = math.ceil(problem.taps * problem.c_per_group / config.block_n)
    return tiles_m, tiles_n, tiles_m * tiles_n * problem.groups * config.splits


def pixels_per_split(problem: ConvProblem, config: WeightGradConfig) -> int:
    """Output pixels of one part, whole steps."""
    steps = math.ceil(pixels(problem) / config.block_k)
    return math.ceil(steps / config.splits) * config.block_k


def workspace_bytes(problem: ConvProblem, splits: int) -> int:
    """Bytes of the partial sums of equal groups."""
    return 4 * splits * math.prod(problem.weight_shape)


def table_entries(problem: ConvProblem, config: WeightGradConfig) -> int:
    """Entries of the table of pixels: whole steps, and one more, which the last step of the loop reads and ignores."""
    return (math.ceil(pixels(problem) / config.block_k) + 1) * config.block_k if config.pixel_table else 0


def table_bytes(problem: ConvProblem, config: WeightGradConfig) -> int:
    """Bytes of the table of pixels, none without one."""
    return ENTRY_BYTES * table_entries(problem, config)


def fit_first_pass(
    problem: ConvProblem, config: WeightGradConfig, part: int, max_bytes: int
) -> tuple[WeightGradConfig, int]:
    """The configuration without its table if `max_bytes` cannot hold it and the `part` bytes of one split.

    Returns:
        the configuration, and the bytes that its table leaves.
    """
    table = table_bytes(problem, config)
    if table + part > max_bytes:
        return (replace(config, pixel_table=False) if table else config), max_bytes
    return config, max_bytes - table


def why_invalid(problem: ConvProblem, config: WeightGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    return (
        refusals.uniform(problem, config)
        or refusals.grid(tiles(problem, config)[2])
        or _table_reason(problem, config)
        or split_reason(problem, config)
    )


def _table_reason(problem: ConvProblem, config: WeightGradConfig) -> str | None:
    (high, wide), (most_high, most_wide) = problem.kernel_size, TABLE_KERNEL
    if config.pixel_table and (high > most_high or wide > most_wide):
        return f"a pixel_table has bits for kernels up to {TABLE_KERNEL}, not for {problem.kernel_size}"
    return None


def split_reason(problem: ConvProblem, config: WeightGradConfig) -> str | None:
    """More splits than there are steps of pixels."""
    steps = math.ceil(pixels(problem) / config.block_k)
    return refusals.splits(config.splits, steps, f"{config.block_k} pixels")


def why_not_on(problem: ConvProblem, config: WeightGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    rows = config.block_m * (1 if problem.epilogue.activation == "none" else 2) + config.block_n  # with what is known
    buffers = max(config.num_stages - 1, 1) * rows * config.block_k * problem.item_size
    return refusals.wgmma_tf32(problem, config.block_m, config, device) or refusals.pipelined(
        problem, config, buffers, device
    )


def one_warp(problem: ConvProblem) -> WeightGradConfig:
    """The smallest tile, for one warp."""
    return WeightGradConfig(num_warps=1, num_stages=1, block_m=16, block_n=16, block_k=16)
