"""What the ragged input gradient needs to know on the host: configuration, tables, valid problems; loads no kernel.

A table row is a (group, tile of its input channels). Groups that share no channel write the input's gradient directly,
and channels that no group reads are rows of depth zero. Where groups share channels, each writes a part of its own, and
a second launch adds to each channel the parts of the groups that read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np

from grouped_conv.kernels.ragged.forward_rules import (
    MAX_ALIGN,
    Traits,
    reciprocal,
    run_alignment,
    traits,
    weight_offsets,
)
from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.classes import class_size, most_taps
from grouped_conv.kernels.values.config import GemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

ROW = 7
"""Numbers of a table row: where the tile's channels begin (channel, entry of the index list, or place among the parts),
how many it has, where its weights begin, how many channels the group reads, its first output channel, how many it
makes, and the reciprocal of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedInputGradConfig(GemmConfig):
    """Block sizes of the ragged input gradient's kernel.

    Attributes:
        block_m: input pixels of one class per tile.
        block_n: input channels of one group per tile.
        block_k: depth of one step of the reduction over taps and output channels.
    """

    family: ClassVar[str] = "ragged_input_grad"
    direction: ClassVar[str] = "input_grad"


@dataclass(frozen=True, slots=True)
class Reader:
    """Channels that table rows are made of.

    Attributes:
        inputs: input channels, in the order of the group's weights.
        outputs: output channels of the group; 0 for channels that no group reads.
        first_out: its first output channel.
        weight: where its weights begin in the flat storage.
    """

    inputs: tuple[int, ...]
    outputs: int
    first_out: int = 0
    weight: int = 0


def shares_channels(layout: GroupLayout) -> bool:
    """Does some input channel belong to more than one group?"""
    return parts_width(layout) + len(layout.unread) > layout.in_channels


def parts_width(layout: GroupLayout) -> int:
    """Input channels of all groups, shared ones as often as they are read."""
    return sum(len(layout.inputs_of(group)) for group in range(layout.groups))


def readers(layout: GroupLayout, taps: int) -> list[Reader]:
    """The groups and, unless a second launch writes them, the channels that no group reads."""
    begins = [0, *np.cumsum(layout.outputs).tolist()]
    found = [
        Reader(layout.inputs_of(group), outputs, begins[group], weight)
        for group, (outputs, weight) in enumerate(zip(layout.outputs, weight_offsets(layout, taps), strict=True))
    ]
    if shares_channels(layout) or not layout.unread:
        return found
    if traits(layout).gather:
        return [*found, Reader(layout.unread, 0)]
    ends = [b for a, b in pairwise(layout.unread) if b != a + 1]  # where a new run of unread channels begins
    cuts = [0, *(layout.unread.index(channel) for channel in ends), len(layout.unread)]
    return [*found, *(Reader(layout.unread[begin:end], 0) for begin, end in pairwise(cuts))]


@lru_cache(maxsize=1024)
def grad_traits(layout: GroupLayout) -> Traits:
    """The layout's traits as stores see them: `gather` where they are scattered, unread channels aligned as well."""
    known = traits(layout)
    if shares_channels(layout):  # parts are stored side by side
        return Traits(False, known.width_align, known.width_align, known.out_align)
    channels = [reader.inputs for reader in readers(layout, 1)]
    align = run_alignment([np.array(inputs) for inputs in channels])
    width = math.gcd(MAX_ALIGN, *map(len, channels))
    return Traits(known.gather, align, width, known.out_align)


def tile_table(problem: ConvProblem, config: RaggedInputGradConfig) -> np.ndarray:
    """The kernel's table, `[rows, ROW]` in int64, deep groups first; see `ROW`."""
    layout = problem.layout
    listed = shares_channels(layout) or traits(layout).gather
    found, entry = [], 0
    for reader in readers(layout, problem.taps):
        width = len(reader.inputs)
        begin = entry if listed else reader.inputs[0]
        for first in range(0, width, config.block_n):
            count = min(config.block_n, width - first)
            weight = (reader.weight + first, width) if reader.outputs else (0, 0)
            outputs = (reader.first_out, reader.outputs, reciprocal(max(reader.outputs, 1)))
            found.append((begin + first, count, *weight, *outputs))
        entry += width
    return np.array(sorted(found, key=lambda row: -row[5]), np.int64).reshape(-1, ROW)


def positions(layout: GroupLayout) -> np.ndarray:
    """Which parts belong to a channel, `[most readers of a channel, channels]` in int32, groups ascending.

    Negative where a channel has fewer readers, counting up within a run of 8 as places do: loads stay wide.
    """
    places: list[list[int]] = [[] for _ in range(layout.in_channels)]
    entry = 0
    for group in range(layout.groups):
        for channel in layout.inputs_of(group):
            places[channel].append(entry)
            entry += 1
    absent = np.arange(layout.in_channels) % MAX_ALIGN - MAX_ALIGN
    table = np.tile(absent.astype(np.int32), (max(map(len, places)), 1))
    for channel, found in enumerate(places):
        table[: len(found), channel] = found
    return table


def tables(problem: ConvProblem, config: RaggedInputGradConfig) -> dict[str, np.ndarray]:
    """The arrays that the launches read in addition to the operands, by buffer name."""
    layout = problem.layout
    arrays = {"tile_table": tile_table(problem, config)}
    if shares_channels(layout):
        arrays["part_positions"] = positions(layout)
    elif traits(layout).gather:
        lists = [reader.inputs for reader in readers(layout, problem.taps)]
        arrays["channel_index"] = np.concatenate([np.array(inputs, np.int32) for inputs in lists])
    return arrays


def workspace(problem: ConvProblem, config: RaggedInputGradConfig) -> tuple[int, ...]:
    """Shape of the parts of groups that share channels."""
    return (problem.batch, *problem.in_size, parts_width(problem.layout))


def tiles(problem: ConvProblem, config: RaggedInputGradConfig) -> tuple[int, int, int]:
    """(pixel tiles of one class, table rows, programs of the launch)."""
    tiles_m = math.ceil(problem.batch * math.prod(class_size(problem)) / config.block_m)
    widths = [len(reader.inputs) for reader in readers(problem.layout, 1)]
    rows = sum(math.ceil(width / config.block_n) for width in widths)
    return tiles_m, rows, tiles_m * rows * math.prod(problem.stride)


def trips(problem: ConvProblem, config: RaggedInputGradConfig) -> int:
    """Steps of the reduction in the largest class of the deepest group."""
    return math.ceil(math.prod(most_taps(problem)) * max(problem.layout.outputs) / config.block_k)


def why_invalid(problem: ConvProblem, config: RaggedInputGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    return (
        refusals.ragged(problem, config) or _depth_reason(problem, config) or refusals.grid(tiles(problem, config)[2])
    )


def _depth_reason(problem: ConvProblem, config: RaggedInputGradConfig) -> str | None:
    ahead = config.num_stages * config.block_k
    for group, outputs in enumerate(problem.layout.outputs):
        deepest = (math.prod(most_taps(problem)) * outputs + ahead) * outputs
        farthest = (outputs + ahead) * problem.taps * len(problem.layout.inputs_of(group))
        if max(deepest, farthest) > refusals.INT32_MAX:
            return f"group {group}: {outputs} outputs of {problem.taps} taps are too deep for 32-bit indices"
    return None


def why_not_on(problem: ConvProblem, config: RaggedInputGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    tile = (config.block_m + config.block_n) * config.block_k * problem.item_size
    return refusals.pipelined(problem, config, max(config.num_stages - 1, 1) * tile, device)


def one_warp(problem: ConvProblem) -> RaggedInputGradConfig:
    """The smallest tile, for one warp."""
    return RaggedInputGradConfig(num_warps=1, num_stages=1, block_m=16, block_n=16, block_k=16)
