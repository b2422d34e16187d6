"""What the ragged kernel needs to know on the host: its configuration, its tables, and which problems it can run.

One launch computes every group of a layout: the kernel looks its group up in a table with one row per (group, channel
tile). Rows of deep groups come first, so that the last programs to start are the shortest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import CACHE_POLICIES, GemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

ROW = 6
"""Numbers of a table row: where the group's input begins (first channel, or first entry of the index list), how many
channels it reads, the reciprocal of that, the tile's first output channel, its number of them, and where its weights
begin."""
MAX_ALIGN = 8
"""Channels in 16 bytes of a 16-bit dtype: the widest load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedConfig(GemmConfig):
    """Block sizes and knobs of the ragged kernel.

    Attributes:
        block_m: output pixels per tile.
        block_n: output channels of one group per tile.
        block_k: depth of one step of the reduction over (kernel row, kernel column, channel).
        cache_a: cache modifier of the input loads, `""`, `.ca` (L1 and L2) or `.cg` (L2 only).
    """

    family: ClassVar[str] = "ragged"

    cache_a: str = ""

    def __post_init__(self) -> None:
        GemmConfig.__post_init__(self)
        if self.cache_a not in CACHE_POLICIES:
            raise ValueError(f"cache_a {self.cache_a!r} must be one of {CACHE_POLICIES}")

    def __str__(self) -> str:
        return " ".join([GemmConfig.__str__(self), *([self.cache_a] if self.cache_a else [])])


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a layout is compiled into the kernel.

    Attributes:
        gather: some group's channels are not consecutive, so that all of them come from the index list.
        in_align: power of two, at most `MAX_ALIGN`: input channels come in runs of so many consecutive ones, each
            run beginning at a multiple of it.
        width_align: power of two, at least `in_align`, that divides the number of channels each group reads.
        out_align: power of two that divides the number of channels each group makes.
    """

    gather: bool
    in_align: int
    width_align: int
    out_align: int


@lru_cache(maxsize=1024)
def traits(layout: GroupLayout) -> Traits:
    """The alignment of `layout`, and whether its groups read consecutive channels."""
    lists = [np.array(layout.inputs_of(group)) for group in range(layout.groups)]
    gather = any((np.diff(channels) != 1).any() for channels in lists)
    align = run_alignment(lists)
    widths = (len(channels) for channels in lists)
    return Traits(gather, align, math.gcd(MAX_ALIGN, *widths), math.gcd(MAX_ALIGN, *layout.outputs))


def run_alignment(lists: list[np.ndarray]) -> int:
    """The `in_align` of these lists of channels, as `Traits` has it."""
    align = MAX_ALIGN
    while align > 1 and not all(_in_runs(channels, align) for channels in lists):
        align //= 2
    return align


def _in_runs(channels: np.ndarray, length: int) -> bool:
    """Is this list made of runs of `length` consecutive channels, each beginning at a multiple of it?"""
    if len(channels) % length:
        return False
    runs = channels.reshape(-1, length)
    return bool((runs[:, 0] % length == 0).all() and (np.diff(runs, axis=1) == 1).all())


def tile_rows(problem: ConvProblem, config: RaggedConfig) -> Iterator[tuple[int, int, int]]:
    """(group, first output channel within it, output channels) of every table row, deepest groups first."""
    layout = problem.layout
    depths = [len(layout.inputs_of(group)) for group in range(layout.groups)]
    for group in sorted(range(layout.groups), key=lambda group: -depths[group]):
        for first in range(0, layout.outputs[group], config.block_n):
            yield group, first, min(config.block_n, layout.outputs[group] - first)


def tile_table(problem: ConvProblem, config: RaggedConfig) -> np.ndarray:
    """The kernel's table, `[rows, ROW]` in int64; see `ROW`."""
    layout, taps = problem.layout, problem.taps
    gather = traits(layout).gather
    widths = [len(layout.inputs_of(group)) for group in range(layout.groups)]
    entries = [0, *np.cumsum(widths).tolist()]
    outputs = [0, *np.cumsum(layout.outputs).tolist()]
    weights = weight_offsets(layout, taps)
    rows = []
    for group, first, count in tile_rows(problem, config):
        begin = entries[group] if gather else layout.inputs_of(group)[0]
        width = widths[group]
        weight = weights[group] + first * taps * width
        rows.append((begin, width, reciprocal(width), outputs[group] + first, count, weight))
    return np.array(rows, np.int64).reshape(-1, ROW)


def channel_index(layout: GroupLayout) -> np.ndarray:
    """The input channels of all groups one after another, in int32: what a gathering kernel looks up."""
    return np.concatenate([np.array(layout.inputs_of(group), np.int32) for group in range(layout.groups)])


def tables(problem: ConvProblem, config: RaggedConfig) -> dict[str, np.ndarray]:
    """The arrays that the kernel reads in addition to its operands, by buffer name."""
    arrays = {"tile_table": tile_table(problem, config)}
    if traits(problem.layout).gather:
        arrays["channel_index"] = channel_index(problem.layout)
    return arrays


def reciprocal(width: int) -> int:
    """`ceil(2^31 / width)`: the upper half of its 64-bit product with `2 k` is `k // width` while `k width < 2^31`."""
    return -(-(2**31) // width)


def weight_offsets(layout: GroupLayout, taps: int) -> list[int]:
    """Where each group's weights `[k, R, S, c]` begin in the flat storage, in elements.

    Groups of equal size form one bucket, one after another; buckets follow in the order in which their sizes first
    appear, each beginning at a multiple of 8 elements (16 bytes of a 16-bit dtype).
    """
    offsets = [0] * layout.groups
    for begin, bucket in zip(bucket_offsets(layout, taps), layout.buckets, strict=True):
        for position, group in enumerate(bucket.groups):
            offsets[group] = begin + position * bucket.outputs * taps * bucket.inputs
    return offsets


def bucket_offsets(layout: GroupLayout, taps: int) -> list[int]:
    """Where each size bucket's weights begin in the flat storage, in elements."""
    begins, end = [], 0
    for bucket in layout.buckets:
        begins.append(end)
        end = _round_up(end + taps * bucket.connections)
    return begins


def weight_elements(layout: GroupLayout, taps: int) -> int:
    """Length of the flat storage in elements, rounded up as bucket beginnings are."""
    return sum(_round_up(taps * bucket.connections) for bucket in layout.buckets)


def _round_up(elements: int) -> int:
    return -(-elements // MAX_ALIGN) * MAX_ALIGN


def why_invalid(problem: ConvProblem, config: RaggedConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    return (
        refusals.ragged(problem, config) or _depth_reason(problem, config) or refusals.grid(tiles(problem, config)[2])
    )


def _depth_reason(problem: ConvProblem, config: RaggedConfig) -> str | None:
    for group in range(problem.groups):
        width = len(problem.layout.inputs_of(group))
        if _deepest(problem, config, width) * width > refusals.INT32_MAX:
            return f"group {group}: {problem.taps} taps of {width} channels are too deep for 32-bit indices"
    return None


def why_not_on(problem: ConvProblem, config: RaggedConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    return refusals.pipelined(problem, config, pipeline_buffers(problem, config, device), device)


def one_warp(problem: ConvProblem) -> RaggedConfig:
    """A tile for one warp: at most 64 columns, 16 deep."""
    block_n = 16
    while block_n < min(max(problem.layout.outputs), 64):
        block_n *= 2
    return RaggedConfig(num_warps=1, num_stages=1, block_m=32, block_n=block_n, block_k=16)


def tiles(problem: ConvProblem, config: RaggedConfig) -> tuple[int, int, int]:
    """(pixel tiles, table rows, programs of the launch)."""
    tiles_m = math.ceil(problem.batch * math.prod(problem.out_size) / config.block_m)
    rows = sum(math.ceil(outputs / config.block_n) for outputs in problem.layout.outputs)
    return tiles_m, rows, tiles_m * rows


def trips(problem: ConvProblem, config: RaggedConfig, group: int) -> int:
    """Iterations of the inner loop in a program of `group`."""
    return math.ceil(problem.taps * len(problem.layout.inputs_of(group)) / config.block_k)


def _deepest(problem: ConvProblem, config: RaggedConfig, width: int) -> int:
    """One more than the largest flat index of such a group; the pipeline prepares blocks past the last."""
    blocks = math.ceil(problem.taps * width / config.block_k) + config.num_stages - 1
    return blocks * config.block_k


def last_tap(problem: ConvProblem, config: RaggedConfig, prepared: bool) -> int:
    """The largest tap index any group computes: of the blocks it multiplies, or also of those it only `prepared`."""
    widths = {len(problem.layout.inputs_of(group)) for group in range(problem.groups)}
    beyond = (config.num_stages - 1) * config.block_k if prepared else 0
    depth = problem.taps
    return max((math.ceil(depth * width / config.block_k) * config.block_k + beyond - 1) // width for width in widths)


def pipeline_buffers(problem: ConvProblem, config: RaggedConfig, device: DeviceSpec) -> int:
    """Bytes of shared memory of the pipelined loop's operand tiles; 0 without a pipeline, where compilers differ.

    As for the implicit GEMM, but an input tile of single channels is not copied asynchronously and has one buffer.
    """
    if config.num_stages == 1:
        return 0
    wgmma = device.backend == "cuda" and device.arch in (90, 100)
    wgmma = wgmma and config.block_m >= 64 and config.num_warps % 4 == 0
    copies = config.num_stages if wgmma else config.num_stages - 1
    threads = config.num_warps * device.warp_size
    asynchronous = traits(problem.layout).in_align * problem.item_size >= 4
    sizes = [rows * config.block_k * problem.item_size for rows in (config.block_m, config.block_n)]
    return sum(size * (copies if asynchronous and size >= 4 * threads else 1) for size in sizes)
