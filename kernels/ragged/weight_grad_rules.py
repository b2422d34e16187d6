"""What the ragged weight gradient needs to know on the host: configuration, tables, valid problems; loads no kernel.

A table row is a (group, tile of its output channels, tile of its weights); every split of the pixels runs all rows. The
sums are in the order of the flat weight storage, and so is the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig, split_reason
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import why_not_on as why_not_on
from grouped_conv.kernels.ragged.forward_rules import (
    bucket_offsets,
    channel_index,
    reciprocal,
    traits,
    weight_elements,
    weight_offsets,
)
from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.problem import ConvProblem

ROW = 8
"""Numbers of a table row: where the group's input begins (first channel, or first entry of the index list), how many
channels it reads, the reciprocal of that, the tile's first output channel, its number of them, the tile's first weight
within an output channel's, its number of them, and where its first sum goes."""
REDUCE_ROW = 3
"""Numbers of an output channel's row in the second pass: where its weights begin, how many they are, and how many zeros
follow them before the next size bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedWeightGradConfig(WeightGradConfig):
    """Block sizes of the ragged weight gradient's kernel: as of the kernel for equal groups."""

    family: ClassVar[str] = "ragged_weight_grad"
    direction: ClassVar[str] = "weight_grad"


def tile_table(problem: ConvProblem, config: RaggedWeightGradConfig) -> np.ndarray:
    """The kernel's table, `[rows, ROW]` in int64; see `ROW`."""
    layout, taps = problem.layout, problem.taps
    gather = traits(layout).gather
    rows, entry, begin_out = [], 0, 0
    for group, (outputs, weight) in enumerate(zip(layout.outputs, weight_offsets(layout, taps), strict=True)):
        inputs = layout.inputs_of(group)
        width, depth = len(inputs), taps * len(inputs)
        begin = entry if gather else inputs[0]
        for first in range(0, outputs, config.block_m):
            for column in range(0, depth, config.block_n):
                rows.append(
                    (
                        begin,
                        width,
                        reciprocal(width),
                        begin_out + first,
                        min(config.block_m, outputs - first),
                        column,
                        min(config.block_n, depth - column),
                        weight + first * depth + column,
                    )
                )
        entry += width
        begin_out += outputs
    return np.array(rows, np.int64).reshape(-1, ROW)


def reduce_table(problem: ConvProblem) -> np.ndarray:
    """The second pass's table, `[output channels, REDUCE_ROW]` in int64; see `REDUCE_ROW`."""
    layout, taps = problem.layout, problem.taps
    ends = [*bucket_offsets(layout, taps)[1:], weight_elements(layout, taps)]
    next_bucket = {bucket.groups[-1]: end for bucket, end in zip(layout.buckets, ends, strict=True)}
    rows = []
    for group, (outputs, weight) in enumerate(zip(layout.outputs, weight_offsets(layout, taps), strict=True)):
        depth = taps * len(layout.inputs_of(group))
        rows += [[weight + k * depth, depth, 0] for k in range(outputs)]
        if group in next_bucket:
            rows[-1][2] = next_bucket[group] - weight - outputs * depth
    return np.array(rows, np.int64).reshape(-1, REDUCE_ROW)


def tables(problem: ConvProblem, config: RaggedWeightGradConfig) -> dict[str, np.ndarray]:
    """The arrays that the launches read in addition to the operands, by buffer name."""
    arrays = {"tile_table": tile_table(problem, config), "weight_rows": reduce_table(problem)}
    if traits(problem.layout).gather:
        arrays["channel_index"] = channel_index(problem.layout)
    return arrays


def workspace(problem: ConvProblem, config: RaggedWeightGradConfig) -> tuple[int, ...]:
    """Shape of the partial sums."""
    return (config.splits, weight_elements(problem.layout, problem.taps))


def tiles(problem: ConvProblem, config: RaggedWeightGradConfig) -> tuple[int, int]:
    """(table rows, programs of the launch)."""
    rows = sum(
        len(bucket.groups)
        * math.ceil(bucket.outputs / config.block_m)
        * math.ceil(problem.taps * bucket.inputs / config.block_n)
        for bucket in problem.layout.buckets
    )
    return rows, rows * config.splits


def why_invalid(problem: ConvProblem, config: RaggedWeightGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    return (
        refusals.ragged(problem, config)
        or ("ragged_weight_grad reads no pixel_table" if config.pixel_table else None)
        or _depth_reason(problem, config)
        or refusals.grid(tiles(problem, config)[1])
        or split_reason(problem, config)
    )


def _depth_reason(problem: ConvProblem, config: RaggedWeightGradConfig) -> str | None:
    for bucket in problem.layout.buckets:
        if (problem.taps * bucket.inputs + config.block_n) * bucket.inputs > refusals.INT32_MAX:
            return f"{problem.taps} taps of {bucket.inputs} channels are too deep for 32-bit indices"
    return None


def one_warp(problem: ConvProblem) -> RaggedWeightGradConfig:
    """The smallest tile, for one warp."""
    return RaggedWeightGradConfig(num_warps=1, num_stages=1, block_m=16, block_n=16, block_k=16)
