"""The depthwise input gradient's tiles, walk and valid configurations; no kernel is loaded here.

A register tile holds input pixels of every class (`values.classes`), so that which taps reach a pixel is known when
the code is compiled. Large kernels loop over their rows, and a program then has rows of one class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.depthwise.forward_rules import MAX_SUMS, too_many_products, why_not_depthwise
from grouped_conv.kernels.depthwise.forward_rules import per_thread as per_thread
from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseInputGradConfig(KernelConfig):
    """Tiles of the depthwise input gradient. A register tile is what one thread computes in each of its channels.

    Attributes:
        block_c: input channels per program.
        tile_h, tile_w: input pixels of a register tile, multiples of the stride (tile_h: rows of one class in a
            `row_loop`, any number).
        block_h, block_w: register tiles of a program across and along rows of the image.
        multipliers: output channels per input channel in one piece of code; must divide the multiplier.
        pack_weight: a pass of its own brings the weight to fp32 with channels innermost.
        row_loop: loop over kernel rows at run time, for kernels too large to be unrolled.
        chunk: columns of a kernel row that such a loop has in one piece of code, the rest in another; 0 for all.
    """

    family: ClassVar[str] = "depthwise_input_grad"
    direction: ClassVar[str] = "input_grad"

    block_c: int = 64
    tile_h: int = 2
    tile_w: int = 4
    block_h: int = 1
    block_w: int = 16
    multipliers: int = 1
    pack_weight: bool = True
    row_loop: bool = False
    chunk: int = 0

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_c=self.block_c, block_h=self.block_h, block_w=self.block_w)
        if self.block_c < 16:
            raise ValueError(f"block_c must be at least 16, but got {self.block_c}")
        if min(self.tile_h, self.tile_w, self.multipliers) < 1:
            raise ValueError(
                f"tile_h, tile_w and multipliers must be at least 1, but got {self.tile_h}, {self.tile_w} "
                f"and {self.multipliers}"
            )
        if self.chunk < 0 or (self.chunk and not self.row_loop):
            raise ValueError(f"chunk={self.chunk} must not be negative, and divides the rows of a row_loop")

    def __str__(self) -> str:
        words = [f"{self.tile_h}x{self.tile_w}", f"{self.block_h}x{self.block_w}x{self.block_c}", f"w{self.num_warps}"]
        words += [f"mult{self.multipliers}"] if self.multipliers > 1 else []
        words += [f"chunk{self.chunk}"] if self.chunk else []
        words += [name.replace("_", "-") for name in ("pack_weight", "row_loop") if getattr(self, name)]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Walk:
    """How the programs divide the input.

    Attributes:
        rows_each: rows of register tiles in one image (of one class, in a row loop).
        rows: those of all images.
        blocks_h, blocks_w: blocks of programs across (over all images) and along rows.
        tiles_c: blocks of channels.
        classes: classes of rows that have programs of their own.
    """

    rows_each: int
    rows: int
    blocks_h: int
    blocks_w: int
    tiles_c: int
    classes: int

    @property
    def programs(self) -> int:
        """Programs of the launch."""
        return self.blocks_h * self.blocks_w * self.tiles_c * self.classes


def walk_of(problem: ConvProblem, config: DepthwiseInputGradConfig) -> Walk:
    """The walk of `config` over `problem`."""
    classes = problem.stride[0] if config.row_loop else 1
    rows_each = math.ceil(math.ceil(problem.in_size[0] / classes) / config.tile_h)
    rows = problem.batch * rows_each
    return Walk(
        rows_each,
        rows,
        math.ceil(rows / config.block_h),
        math.ceil(problem.in_size[1] / (config.tile_w * config.block_w)),
        math.ceil(problem.in_channels / config.block_c),
        classes,
    )


def straight_columns(problem: ConvProblem, config: DepthwiseInputGradConfig) -> int:
    """Kernel columns in one piece of straight-line code."""
    return min(config.chunk or problem.kernel_size[1], problem.kernel_size[1])


def places(pixels: int, taps: int, stride: int, pad: int, dilation: int) -> set[int]:
    """Output rows that a tile of `pixels` input rows reads, counted from the tile's first row over the stride."""
    distances = [pixel + pad - dilation * tap for pixel in range(pixels) for tap in range(taps)]
    return {distance // stride for distance in distances if distance % stride == 0}


def padding_efficiency(problem: ConvProblem, config: DepthwiseInputGradConfig) -> float:
    """Useful products / products issued: rounding up of rows, columns and channels to whole blocks."""
    walk = walk_of(problem, config)
    pixels = walk.programs * config.tile_h * config.tile_w * config.block_h * config.block_w
    useful = problem.batch * math.prod(problem.in_size) * problem.in_channels
    return useful / (pixels * config.block_c) if pixels else 1.0


def why_invalid(problem: ConvProblem, config: DepthwiseInputGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    wrong = why_not_depthwise(problem, config)
    if wrong is not None:
        return wrong
    stride_h, stride_w = problem.stride
    if config.tile_w % stride_w or (config.tile_h % stride_h and not config.row_loop):
        return f"tiles of {config.tile_h}x{config.tile_w} pixels must be multiples of the stride {problem.stride}"
    columns = straight_columns(problem, config)
    if columns < problem.kernel_size[1] and columns * problem.dilation[1] % stride_w:
        return f"chunk={config.chunk} times the dilation {problem.dilation[1]} must be a multiple of {stride_w}"
    rest = (problem.kernel_size[1] - columns) % columns
    products = config.tile_h * config.tile_w * config.multipliers * math.ceil((columns + rest) / stride_w)
    products *= 1 if config.row_loop else math.ceil(problem.kernel_size[0] / stride_h)
    walk = walk_of(problem, config)
    windows = [d * k for d, k in zip(problem.dilation, problem.kernel_size, strict=True)]
    sizes = {
        "rows of tiles": walk.rows + config.block_h,
        "rows": problem.in_size[0] + problem.out_size[0] + config.tile_h * problem.stride[0] + windows[0],
        "columns": problem.in_size[1] + problem.out_size[1] + config.tile_w * config.block_w + windows[1],
        "channels": problem.out_channels + config.block_c * problem.k_per_group,
    }
    return (
        too_many_products(products, "smaller tiles" if config.row_loop else "row_loop or smaller tiles")
        or refusals.grid(walk.programs)
        or refusals.indices(sizes, refusals.INT32_MAX // 4)
    )


def why_not_on(problem: ConvProblem, config: DepthwiseInputGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    sums = config.tile_h * config.tile_w * per_thread(config, device)
    if sums > MAX_SUMS:
        return f"{sums:g} sums per thread spill (at most {MAX_SUMS})"
    return None


def one_warp(problem: ConvProblem) -> DepthwiseInputGradConfig:
    """A small block for one warp."""
    return DepthwiseInputGradConfig(
        num_warps=1,
        block_c=16,
        tile_h=1,
        tile_w=problem.stride[1],
        block_h=1,
        block_w=4,
        pack_weight=False,
        row_loop=True,
    )
