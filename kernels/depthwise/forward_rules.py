"""The depthwise kernel's configuration, its arithmetic of tiles, and which configurations can run a problem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.kernels.values.refusals import INT32_MAX

MAX_PRODUCTS = 512
"""Products per channel in straight-line code. 7x7 with 2x4 outputs has 392 and compiles in about 8 s for sm_80, so 512
stays below the 20 s that a compilation may take."""
MAX_SUMS = 96
"""fp32 sums per thread above which ptxas spilled (128 at 3x3: 24 bytes on sm_80 and sm_90)."""
MAX_STRIDED_SUMS_SM_120 = 48
"""The same on sm_120 at stride 2, where 56 spilled 8 bytes (Triton 3.8)."""
MAX_HELD = 144
"""Sums and resident weights together: 64 and 72 took 230 registers on sm_80, and no spill."""
STRIPS = ("w", "h")


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseConfig(KernelConfig):
    """Tiles and knobs of the depthwise kernel. A register tile is what one thread computes in each of its channels.

    Attributes:
        block_c: input channels per program.
        tile_h, tile_w: outputs of a register tile across and along the strip; any numbers, 7 fits 7x7 images.
        block_h, block_w: register tiles of a program across and along the strip.
        steps: blocks that a program walks across the strip, one after the other, with one set of channel vectors.
        multipliers: output channels per input channel that a program computes; must divide the multiplier.
        strip: `w` or `h`: the axis of the image along which strips run. `h` treats the image as if it were turned.
        pack_weight: a pass of its own brings the weight to fp32 with channels innermost: 2 loads for 8 weights in
            place of 8 loads and 8 conversions.
        resident: load all weights before the first step.
        row_loop: loop over kernel rows at run time, for kernels too large to be unrolled.
        chunk: columns of a kernel row that such a loop has in one piece of code, the rest in another; 0 for all.
        interior: a block whose windows are inside the image takes a path without bounds checks.
        static_channels: compile the numbers of channels in; addresses inside a row are then part of the load.
    """

    family: ClassVar[str] = "depthwise"

    block_c: int = 64
    tile_h: int = 2
    tile_w: int = 4
    block_h: int = 1
    block_w: int = 16
    steps: int = 1
    multipliers: int = 1
    strip: str = "w"
    pack_weight: bool = True
    resident: bool = False
    row_loop: bool = False
    chunk: int = 0
    interior: bool = False
    static_channels: bool = True

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_c=self.block_c, block_h=self.block_h, block_w=self.block_w)
        if self.block_c < 16:
            raise ValueError(f"block_c must be at least 16, but got {self.block_c}")
        if min(self.tile_h, self.tile_w, self.steps, self.multipliers) < 1:
            raise ValueError(
                "tile_h, tile_w, steps and multipliers must be at least 1, "
                f"but got {self.tile_h}, {self.tile_w}, {self.steps} and {self.multipliers}"
            )
        if self.strip not in STRIPS:
            raise ValueError(f"strip {self.strip!r} must be one of {STRIPS}")
        if self.chunk < 0 or (self.chunk and not self.row_loop):
            raise ValueError(f"chunk={self.chunk} must not be negative, and divides the rows of a row_loop")
        if self.resident and self.row_loop:
            raise ValueError("resident weights and a loop over kernel rows exclude each other")

    def __str__(self) -> str:
        words = [f"{self.tile_h}x{self.tile_w}", f"{self.block_h}x{self.block_w}x{self.block_c}", f"w{self.num_warps}"]
        words += [f"steps{self.steps}"] if self.steps > 1 else []
        words += [f"mult{self.multipliers}"] if self.multipliers > 1 else []
        words += ["along-h"] if self.strip == "h" else []
        words += [f"chunk{self.chunk}"] if self.chunk else []
        words += ["pack"] if self.pack_weight else []
        names = ("resident", "row_loop", "interior")
        words += [name.replace("_", "-") for name in names if getattr(self, name)]
        return " ".join(words + ([] if self.static_channels else ["dyn"]))


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the image as the kernel sees it."""

    size: int
    out: int
    kernel: int
    stride: int
    pad: int
    dilation: int

    @property
    def read(self) -> int:
        """Positions from the first that any output reads; what a stride leaves over at the end is not read."""
        return min(self.size, (self.out - 1) * self.stride - self.pad + self.window(1))

    def window(self, outputs: int) -> int:
        """Positions from the first to the last that `outputs` neighbours read."""
        return (outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    def positions(self, outputs: int) -> int:
        """How many positions of that window are read."""
        taken = {o * self.stride + k * self.dilation for o in range(outputs) for k in range(self.kernel)}
        return len(taken)

    def inside(self, first: int, outputs: int) -> int:
        """Different positions inside the image that outputs `first` to `first + outputs - 1` read."""
        last = min(first + outputs, self.out) - first
        start = first * self.stride - self.pad
        if last < 1:
            return 0
        if self.stride <= self.kernel and self.dilation == 1:
            return max(0, min(start + self.window(last), self.read) - max(start, 0))
        taken = {start + o * self.stride + k * self.dilation for o in range(last) for k in range(self.kernel)}
        return sum(0 <= position < self.read for position in taken)


def axes_of(problem: ConvProblem, config: DepthwiseConfig) -> tuple[Axis, Axis]:
    """(across the strip, along the strip)."""
    height, width = (
        Axis(
            problem.in_size[i],
            problem.out_size[i],
            problem.kernel_size[i],
            problem.stride[i],
            problem.padding[2 * i],
            problem.dilation[i],
        )
        for i in (0, 1)
    )
    return (height, width) if config.strip == "w" else (width, height)


@dataclass(frozen=True, slots=True)
class Walk:
    """How the programs divide the output.

    Attributes:
        rows_each: rows of register tiles in one image.
        rows: rows of register tiles in all images.
        blocks_h, blocks_w: blocks of programs across (over all images) and along the strip.
        tiles_c: blocks of channels.
        parts: programs that share a channel's multipliers.
    """

    rows_each: int
    rows: int
    blocks_h: int
    blocks_w: int
    tiles_c: int
    parts: int

    @property
    def programs(self) -> int:
        """Programs of the launch."""
        return self.blocks_h * self.blocks_w * self.tiles_c * self.parts


def walk_of(problem: ConvProblem, config: DepthwiseConfig) -> Walk:
    """The walk of `config` over `problem`."""
    across, along = axes_of(problem, config)
    rows_each = math.ceil(across.out / config.tile_h)
    rows = problem.batch * rows_each
    return Walk(
        rows_each,
        rows,
        math.ceil(rows / (config.block_h * config.steps)),
        math.ceil(along.out / (config.tile_w * config.block_w)),
        math.ceil(problem.in_channels / config.block_c),
        problem.k_per_group // config.multipliers,
    )


def straight_columns(problem: ConvProblem, config: DepthwiseConfig) -> int:
    """Kernel columns in one piece of straight-line code."""
    _, along = axes_of(problem, config)
    return min(config.chunk or along.kernel, along.kernel)


def halo_bytes(problem: ConvProblem, config: DepthwiseConfig) -> int:
    """Input bytes the programs must read, each program's different bytes once: the compulsory reads of the walk."""
    across, along = axes_of(problem, config)
    walk = walk_of(problem, config)
    high = config.block_h * config.steps
    columns = _columns(along, config.tile_w * config.block_w, walk.blocks_w)
    cycle = walk.rows_each // math.gcd(walk.rows_each, high)  # blocks after which images and blocks begin together
    whole, rest = divmod(walk.blocks_h, cycle)
    lines = 0
    if whole:
        lines += whole * sum(across.inside(*run) for run in _row_runs(walk, config, 0, cycle))
    lines += sum(across.inside(*run) for run in _row_runs(walk, config, walk.blocks_h - rest, walk.blocks_h))
    return lines * columns * problem.in_channels * walk.parts * problem.item_size


def _columns(along: Axis, wide: int, blocks: int) -> int:
    """Input columns of all blocks of `wide` outputs; of very many, those in the middle are taken as alike."""
    edge = 128
    if blocks <= 2 * edge:
        return sum(along.inside(block * wide, wide) for block in range(blocks))
    ends = [*range(edge), *range(blocks - edge, blocks)]
    middle = (blocks - 2 * edge) * along.inside(edge * wide, wide)
    return middle + sum(along.inside(block * wide, wide) for block in ends)


def _row_runs(walk: Walk, config: DepthwiseConfig, first: int, last: int) -> Iterator[tuple[int, int]]:
    """(first output row, output rows) in every image that blocks `first` to `last - 1` touch."""
    high = config.block_h * config.steps
    for block in range(first, last):
        row, end = block * high, min((block + 1) * high, walk.rows)
        while row < end:
            stop = min(end, (row // walk.rows_each + 1) * walk.rows_each)
            yield row % walk.rows_each * config.tile_h, (stop - row) * config.tile_h
            row = stop


def padding_efficiency(problem: ConvProblem, config: DepthwiseConfig) -> float:
    """Useful products / products issued: rounding up of rows, columns and channels to whole blocks."""
    walk = walk_of(problem, config)
    pixels = config.tile_h * config.tile_w * config.block_h * config.block_w * config.steps
    issued = walk.programs * pixels * config.block_c * config.multipliers * problem.taps
    return problem.macs / issued if issued else 1.0


def why_invalid(problem: ConvProblem, config: DepthwiseConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    wrong = why_not_depthwise(problem, config)
    if wrong is not None:
        return wrong
    if problem.input_shuffle > 1:
        return "depthwise reads no shuffled input: every load would be of one channel; shuffle the output before it"
    across, along = axes_of(problem, config)
    columns = straight_columns(problem, config)
    products = config.tile_h * config.tile_w * config.multipliers * (columns + (along.kernel - columns) % columns)
    products *= 1 if config.row_loop else across.kernel
    walk = walk_of(problem, config)
    sizes = {
        "rows of tiles": walk.rows + config.block_h * config.steps,
        "input rows": (across.out + config.tile_h) * across.stride + across.window(1),
        "input columns": (along.out + config.tile_w * config.block_w) * along.stride + along.window(1),
        "channels": problem.out_channels + config.block_c * problem.k_per_group,
    }
    return (
        too_many_products(products, "smaller tiles" if config.row_loop else "row_loop or smaller tiles")
        or refusals.grid(walk.programs)
        or refusals.indices(sizes, INT32_MAX // 2)
    )


def why_not_depthwise(problem: ConvProblem, config: Any) -> str | None:
    """Why no depthwise kernel, of any direction, can run `config`; `None` when one can."""
    wrong = refusals.direction(problem, config)
    if wrong is None and (not problem.layout.is_uniform or problem.c_per_group != 1):
        return f"{config.family} needs equal groups of one input channel"
    if wrong is None and problem.k_per_group % config.multipliers:
        return f"multipliers={config.multipliers} must divide the multiplier {problem.k_per_group}"
    return wrong


def too_many_products(products: int, hint: str) -> str | None:
    """More products per channel in straight-line code than compile in seconds; `hint` says what has fewer."""
    if products <= MAX_PRODUCTS:
        return None
    return f"{products} products per channel in straight-line code, at most {MAX_PRODUCTS}; use {hint}"


def per_thread(config: Any, device: DeviceSpec) -> float:
    """Channels of one thread (below 1 when threads are idle)."""
    return config.block_h * config.block_w * config.block_c / (config.num_warps * device.warp_size)


def why_not_on(problem: ConvProblem, config: DepthwiseConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    values = per_thread(config, device)
    sums = config.tile_h * config.tile_w * config.multipliers * values
    strided = device.arch == 120 and max(problem.stride) > 1
    most = MAX_STRIDED_SUMS_SM_120 if strided else MAX_SUMS
    if sums > most:
        return f"{sums:g} sums per thread spill (at most {most})"
    if config.resident:
        held = sums + problem.taps * config.multipliers * values
        if held > MAX_HELD:
            return f"{held:g} sums and resident weights per thread spill (at most {MAX_HELD})"
    return None


def weight_order(problem: ConvProblem, config: Any) -> str:
    """`taps` for the packed weight, `any` for the weight as it is in memory."""
    return "taps" if config.pack_weight else "any"


def one_warp(problem: ConvProblem) -> DepthwiseConfig:
    """A small block for one warp."""
    tile_w = 2 if problem.taps <= 128 else 1
    looped = problem.taps * tile_w > MAX_PRODUCTS
    return DepthwiseConfig(
        num_warps=1, block_c=16, tile_h=1, tile_w=tile_w, block_h=1, block_w=4, pack_weight=False, row_loop=looped
    )
