"""The configuration of the fused separable kernel, the slices it walks through, and what it can run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import KernelConfig, check_blocks
from grouped_conv.kernels.values.device import DeviceSpec

METHODS = ("direct", "dot")
WIDTHS = (16, 32, 64)
MAX_SUMS = 64
"""fp32 sums per thread of the 1x1 convolution above which ptxas spilled (sm_80 and sm_90, compiled, not timed)."""
MAX_SUMS_SM_120 = 32
"""The same on sm_120 with unrolled steps of packed groups in slices of 32: 64 spilled 24 to 40 bytes (Triton 3.8)."""
UNROLLED_STEPS = 9
"""Steps of the first convolution that may be unrolled; more run in a loop, or the code of a large kernel explodes."""
UNROLLED_REGISTERS = 172
"""Registers per thread that the loads of unrolled steps and the sums may need; beyond it compiled kernels spilled.

The compiler issues all loads of a slice before it multiplies. 128x128 by 32 columns on 8 warps (170) does not spill,
64x256 by 64 columns and 64 deep (188) does, by 8 bytes; looped it does not (sm_80, Triton 3.8).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeparableConfig(KernelConfig):
    """Block sizes of the fused kernel.

    Attributes:
        block_m: output pixels per tile.
        block_n: output channels of the 1x1 convolution per tile; the first convolution is redone for each such tile.
        width: intermediate channels per slice at most, 16, 32 or 64.
        block_k: input channels that one step of a `dot` slice reads at most; packs of groups are no wider.
        method: how a slice is computed: `direct` multiplies channel by channel (one channel per group in and out),
            `dot` multiplies packs of thin groups block-diagonally, and wide groups in parts, by matrix instructions.
    """

    family: ClassVar[str] = "separable"

    block_m: int = 128
    block_n: int = 64
    width: int = 32
    block_k: int = 32
    method: str = "dot"

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        check_blocks(self.block_m, self.block_n, self.block_k)
        if self.width not in WIDTHS or self.method not in METHODS:
            raise ValueError(
                f"width {self.width!r} must be one of {WIDTHS} and method {self.method!r} one of {METHODS}"
            )

    def __str__(self) -> str:
        depth = f" k{self.block_k}" if self.method == "dot" else ""
        return f"{self.block_m}x{self.block_n} {self.method}{self.width}{depth} w{self.num_warps} s{self.num_stages}"


@dataclass(frozen=True, slots=True)
class Slices:
    """How the intermediate channels are cut.

    Attributes:
        count: slices of the whole problem.
        pack: whole groups in a slice; 1 where a group alone fills one or more slices.
        parts: slices of one group (1 where `pack` is more than 1).
        tile: columns of a slice, at least its channels.
        depth: input channels of one step.
        steps: steps of one kernel tap.
    """

    count: int
    pack: int
    parts: int
    tile: int
    depth: int
    steps: int

    def trips(self, problem: SeparableProblem) -> int:
        """Steps of the whole reduction of one slice."""
        return problem.first.taps * self.steps


@lru_cache(maxsize=4096)
def slices_of(problem: SeparableProblem, config: SeparableConfig) -> Slices:
    """The slices that `config` cuts the intermediate channels into."""
    first = problem.first
    if config.method == "direct":
        return Slices(math.ceil(first.out_channels / config.width), 1, 1, config.width, config.width, 1)
    c, k, groups = first.c_per_group, first.k_per_group, first.groups
    pack = max(1, min(config.width // k, config.block_k // c, groups))
    aligned = 8 // math.gcd(8, math.gcd(c, k))  # groups whose channels fill whole 16-byte vectors, in and out
    if pack > aligned:
        pack = pack // aligned * aligned
    if pack > 1:
        return Slices(math.ceil(groups / pack), pack, 1, _tile(pack * k), _tile(pack * c), 1)
    tile = min(config.width, _tile(k))
    depth = min(config.block_k, _tile(c))
    parts = math.ceil(k / tile)
    return Slices(groups * parts, 1, parts, tile, depth, math.ceil(c / depth))


def is_unrolled(problem: SeparableProblem, config: SeparableConfig) -> bool:
    """Are the steps of one slice unrolled? Otherwise they run in a loop, of which `num_stages` copies are in flight.

    Never on one warp, which is for a lane that compiles for the CPU: it takes minutes to build unrolled products.
    """
    if config.num_warps == 1:
        return False
    cut = slices_of(problem, config)
    trips = cut.trips(problem)
    words = problem.item_size / 4
    depth, weights = (cut.tile, 0.0) if config.method == "direct" else (cut.depth, cut.depth * cut.tile / 2)
    loads = trips * words * (config.block_m * depth + weights)
    sums = config.block_m * (config.block_n + cut.tile)
    return trips <= UNROLLED_STEPS and (loads + sums) / (32 * config.num_warps) <= UNROLLED_REGISTERS


def _tile(channels: int) -> int:
    """The power of two, at least 16, that holds `channels`."""
    return max(16, 1 << (channels - 1).bit_length())


def tiles(problem: SeparableProblem, config: SeparableConfig) -> tuple[int, int, int]:
    """(pixel tiles, tiles of the output channels, programs of the launch)."""
    tiles_m = math.ceil(problem.pixels / config.block_m)
    tiles_n = math.ceil(problem.out_channels / config.block_n)
    return tiles_m, tiles_n, tiles_m * tiles_n


def why_invalid(problem: SeparableProblem, config: SeparableConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    first = problem.first
    wrong = refusals.uniform(first, config)
    if wrong is not None:
        return wrong
    if first.input_shuffle > 1 or first.epilogue.shuffle > 1 or problem.epilogue.shuffle > 1:
        return "separable shuffles no channels"
    if config.method == "direct" and (first.c_per_group, first.k_per_group) != (1, 1):
        return (
            "method 'direct' needs one channel per group in and out, "
            f"but got C_PER_GROUP={first.c_per_group}, K_PER_GROUP={first.k_per_group}"
        )
    return refusals.grid(tiles(problem, config)[2])


def why_not_on(problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    threads = config.num_warps * device.warp_size
    sums = config.block_m * config.block_n // threads
    if sums > MAX_SUMS * (device.warp_size // 32):
        return f"{sums} sums per thread and a slice do not fit the registers"
    if device.arch == 120 and sums > MAX_SUMS_SM_120 and config.width >= 32 and slices_of(problem, config).pack > 1:
        return f"{sums} sums per thread spill on sm_120 with slices of {config.width}"
    return refusals.shared_memory(shared_memory(problem, config), "tiles", device) or refusals.tf32(
        problem.precision, device
    )


def shared_memory(problem: SeparableProblem, config: SeparableConfig) -> int:
    """An estimate of the compiled kernel's shared memory, in bytes.

    It holds the operands of both multiplications at once, those of the first as often as its loop has stages.
    """
    cut = slices_of(problem, config)
    copies = 1 if is_unrolled(problem, config) else config.num_stages
    first = 0 if config.method == "direct" else copies * (config.block_m + cut.tile) * cut.depth
    second = (config.block_m + config.block_n) * cut.tile
    return (first + second) * problem.item_size


def one_warp(problem: SeparableProblem) -> SeparableConfig:
    """A small configuration of one warp, for places that compile for a CPU."""
    depthwise = (problem.first.c_per_group, problem.first.k_per_group) == (1, 1)
    block_n = 16 if problem.out_channels <= 16 else 32
    return SeparableConfig(
        num_warps=1, block_m=32, block_n=block_n, width=16, block_k=16, method="direct" if depthwise else "dot"
    )
