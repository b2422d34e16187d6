"""The ragged weight gradient in tuning: defaults, search space and cost model. Nothing here was measured.

Model: the streaming one with the mean program of all table rows. Instructions per trip are counted in compiled loops;
the splits' sums are written and read once, and one more launch adds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.ragged.gradients import Loop, fits_registers, loop_work
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WORKSPACE_BYTES, pixels, pixels_per_split
from grouped_conv.kernels.ragged.forward_rules import traits, weight_elements
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig, tiles
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

LAST_RESORT = RaggedWeightGradConfig(block_m=16, block_n=32, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""
LOAD_COST, PROGRAM_COST = 60.0, 700.0
"""Instructions of one warp per load of an operand's vector, and per program besides its loop. A 64x128x32 loop of four
warps has 400 instructions, 32 of them `mma`, for 6 vector loads on sm_80."""
TILES = ((64, 128, 4), (64, 64, 4), (32, 128, 4), (32, 64, 4), (16, 64, 4))
PROGRAMS_PER_MULTIPROCESSOR = 2
"""Programs that splits should give each multiprocessor; assumed."""


def work(problem: ConvProblem, config: RaggedWeightGradConfig, device: DeviceSpec) -> Work:
    """What the weight gradient of `problem` with `config` does."""
    _, programs = tiles(problem, config)
    aligned = traits(problem.layout)
    sums = 2.0 * 4 * config.splits * weight_elements(problem.layout, problem.taps)
    steps = programs * pixels_per_split(problem, config) / config.block_k
    vector = min(aligned.out_align, aligned.in_align) * problem.item_size
    return loop_work(problem, config, device, Loop(programs, steps, vector, PROGRAM_COST, LOAD_COST, sums, 1))


def _shapes() -> Iterator[RaggedWeightGradConfig]:
    for block_m, block_n, warps in TILES:
        yield RaggedWeightGradConfig(block_m=block_m, block_n=block_n, num_warps=warps)


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedWeightGradConfig]:
    """A few tiles no taller than the largest group's, with splits that fill the device; the last resort last."""
    most = max(problem.layout.outputs)
    for shape in _shapes():
        if shape.block_m > 16 and shape.block_m >= 2 * most:
            continue
        tile = replace(shape, num_stages=3 if device.backend == "cuda" else 2)
        config = replace(tile, splits=filling_splits(problem, tile, device))
        if why_invalid(problem, config, device) is None and fits_registers(problem, config, device):
            yield config
    yield LAST_RESORT


def filling_splits(problem: ConvProblem, config: RaggedWeightGradConfig, device: DeviceSpec) -> int:
    """Splits that give the device `PROGRAMS_PER_MULTIPROCESSOR`, within the steps and the workspace there are."""
    rows, _ = tiles(problem, config)
    steps = max(1, math.ceil(pixels(problem) / config.block_k))
    room = max(1, WORKSPACE_BYTES // (4 * weight_elements(problem.layout, problem.taps)))
    return max(1, min(steps, room, PROGRAMS_PER_MULTIPROCESSOR * device.sm_count // rows))


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedWeightGradConfig]:
    """Tiles, depths, stages and splits."""

    def splits(config: RaggedWeightGradConfig) -> list[int]:
        full = filling_splits(problem, config, device)
        return sorted({1, max(1, full // 2), full})

    return variants(_shapes(), block_k=(16, 32, 64), num_stages=(1, 2, 3), splits=splits)


MODEL = Model(defaults, _candidates, work)
