"""The depthwise weight gradient's tiles, splits and valid configurations; no kernel is loaded here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.depthwise.forward_rules import too_many_products, why_not_depthwise
from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MAX_HELD = 112
"""Sums and gradients of a register tile per thread, in fp32, above which code is not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseWeightGradConfig(KernelConfig):
    """Tiles of the depthwise weight gradient. A register tile is what one thread reads of the output at a time.

    Attributes:
        block_c: input channels per program.
        block_p: register tiles that a program takes at once.
        tile_h, tile_w: output pixels of a register tile; at most the output's size.
        rows, columns: kernel rows and columns whose weights a program computes; 0 for all.
        multipliers: output channels per input channel of a program; must divide the multiplier.
        splits: parts into which the output is divided; a second kernel adds their sums in a fixed order.
    """

    family: ClassVar[str] = "depthwise_weight_grad"
    direction: ClassVar[str] = "weight_grad"

    block_c: int = 64
    block_p: int = 16
    tile_h: int = 1
    tile_w: int = 4
    rows: int = 0
    columns: int = 0
    multipliers: int = 1
    splits: int = 1

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_c=self.block_c, block_p=self.block_p)
        if self.block_c < 16:
            raise ValueError(f"block_c must be at least 16, but got {self.block_c}")
        if min(self.tile_h, self.tile_w, self.multipliers, self.splits) < 1:
            raise ValueError(
                f"tile_h, tile_w, multipliers and splits must be at least 1, but got {self.tile_h}, {self.tile_w}, "
                f"{self.multipliers} and {self.splits}"
            )
        if min(self.rows, self.columns) < 0:
            raise ValueError(f"rows={self.rows} and columns={self.columns} must not be negative")

    def __str__(self) -> str:
        words = [f"{self.tile_h}x{self.tile_w}", f"{self.block_p}x{self.block_c}", f"w{self.num_warps}"]
        words += [f"taps{self.rows or 'all'}x{self.columns or 'all'}"] if self.rows or self.columns else []
        words += [f"mult{self.multipliers}"] if self.multipliers > 1 else []
        return " ".join(words + ([f"split{self.splits}"] if self.splits > 1 else []))


@dataclass(frozen=True, slots=True)
class Walk:
    """How the programs divide the work.

    Attributes:
        rows, columns: kernel rows and columns of a program.
        parts_h, parts_w: programs that share a kernel's rows and its columns.
        parts_m: programs that share a channel's multipliers.
        tiles_c: blocks of channels.
        rows_each, columns_each: register tiles of one image.
        tiles: register tiles of all images.
        part: register tiles of one split, whole steps.
        splits: parts of the output.
    """

    rows: int
    columns: int
    parts_h: int
    parts_w: int
    parts_m: int
    tiles_c: int
    rows_each: int
    columns_each: int
    tiles: int
    part: int
    splits: int

    @property
    def programs(self) -> int:
        """Programs of the launch."""
        return self.parts_h * self.parts_w * self.parts_m * self.tiles_c * self.splits


def walk_of(problem: ConvProblem, config: DepthwiseWeightGradConfig) -> Walk:
    """The walk of `config` over `problem`."""
    rows = min(config.rows or problem.kernel_size[0], problem.kernel_size[0])
    columns = min(config.columns or problem.kernel_size[1], problem.kernel_size[1])
    rows_each = math.ceil(problem.out_size[0] / config.tile_h)
    columns_each = math.ceil(problem.out_size[1] / config.tile_w)
    tiles = problem.batch * rows_each * columns_each
    steps = math.ceil(tiles / config.block_p)
    return Walk(
        rows,
        columns,
        math.ceil(problem.kernel_size[0] / rows),
        math.ceil(problem.kernel_size[1] / columns),
        problem.k_per_group // config.multipliers,
        math.ceil(problem.in_channels / config.block_c),
        rows_each,
        columns_each,
        tiles,
        math.ceil(steps / config.splits) * config.block_p,
        config.splits,
    )


def padding_efficiency(problem: ConvProblem, config: DepthwiseWeightGradConfig) -> float:
    """Useful products / products issued: rounding up of tiles, taps and channels to whole blocks."""
    walk = walk_of(problem, config)
    steps = math.ceil(walk.tiles / config.block_p) * config.block_p
    products = steps * config.tile_h * config.tile_w * walk.rows * walk.columns * config.multipliers * config.block_c
    issued = products * walk.parts_h * walk.parts_w * walk.parts_m * walk.tiles_c
    return problem.macs / issued if issued else 1.0


def why_invalid(problem: ConvProblem, config: DepthwiseWeightGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    wrong = why_not_depthwise(problem, config)
    if wrong is not None:
        return wrong
    tile = (config.tile_h, config.tile_w)
    if any(size > out > 0 for size, out in zip(tile, problem.out_size, strict=True)):
        return f"register tiles of {tile} are larger than the output {problem.out_size}"
    walk = walk_of(problem, config)
    products = math.prod(tile) * walk.rows * walk.columns * config.multipliers
    windows = [
        d * k + s * t for d, k, s, t in zip(problem.dilation, problem.kernel_size, problem.stride, tile, strict=True)
    ]
    sizes = {
        "tiles": walk.tiles + 2 * walk.part,
        "rows": problem.in_size[0] + windows[0],
        "columns": problem.in_size[1] + windows[1],
        "channels": problem.out_channels + config.block_c * problem.k_per_group,
    }
    return (
        too_many_products(products, "fewer rows or columns")
        or refusals.grid(walk.programs)
        or refusals.splits(config.splits, math.ceil(walk.tiles / config.block_p), f"{config.block_p} tiles")
        or refusals.indices(sizes, refusals.INT32_MAX // 4)
    )


def per_thread(config: DepthwiseWeightGradConfig, device: DeviceSpec) -> float:
    """Channels of one thread (below 1 when threads are idle)."""
    return config.block_p * config.block_c / (config.num_warps * device.warp_size)


def held(problem: ConvProblem, config: DepthwiseWeightGradConfig, device: DeviceSpec) -> float:
    """Sums and gradients of a register tile, per thread."""
    walk = walk_of(problem, config)
    each = config.multipliers * (walk.rows * walk.columns + config.tile_h * config.tile_w)
    return each * max(1.0, per_thread(config, device))


def why_not_on(problem: ConvProblem, config: DepthwiseWeightGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    values = held(problem, config, device)
    if values > MAX_HELD:
        return f"{values:g} sums and gradients per thread spill (at most {MAX_HELD})"
    return None


def one_warp(problem: ConvProblem) -> DepthwiseWeightGradConfig:
    """A small block for one warp."""
    columns = min(problem.kernel_size[1], 8)
    return DepthwiseWeightGradConfig(num_warps=1, block_c=16, block_p=4, tile_w=1, rows=1, columns=columns)
