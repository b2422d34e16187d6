"""The implicit GEMM's weight gradient in tuning: defaults, splits and cost model. Nothing here was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.shared.gemm_gradient import GemmLoop, gemm_work
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import (
    WORKSPACE_BYTES,
    WeightGradConfig,
    pixels,
    pixels_per_split,
    table_bytes,
    tiles,
    workspace_bytes,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

TILES = (
    (128, 128, 8),
    (64, 128, 8),
    (128, 64, 8),
    (64, 64, 4),
    (32, 128, 4),
    (32, 64, 4),
    (64, 32, 4),
    (16, 64, 4),
    (16, 32, 4),
)
"""(block_m, block_n, warps) worth comparing."""
WAVES = 2
"""Programs per multiprocessor that the split aims at: a tail of half a wave then costs a quarter."""
LEAST_STEPS = 4
"""Steps of the reduction that each part of a split must have."""
FIND_PIXEL = 13
"""Instructions per copy of the input for finding its pixel and testing its tap without a table, over those with one:
10 to 14 on sm_80, 14 to 17 on sm_90, read from compiled code of the first six tiles above."""
TABLE_SPILLS = "gelu"
"""The activation whose derivative takes 3,000 instructions of a step: there a table saves 2 % and spills on sm_80."""
LAST_RESORT = WeightGradConfig(block_m=16, block_n=32, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[WeightGradConfig]:
    """The configurations that the heuristic compares, the last resort last."""
    if problem.batch:
        depth = problem.taps * problem.c_per_group
        for block_m, block_n, warps in TILES:
            if (block_m > 16 and block_m >= 2 * problem.k_per_group) or (block_n > 32 and block_n >= 2 * depth):
                continue
            block_k = 32 if problem.dtype == "float32" else 64
            config = WeightGradConfig(block_m=block_m, block_n=block_n, block_k=block_k, num_warps=warps, num_stages=3)
            for table in (False, True) if problem.epilogue.activation != TABLE_SPILLS else (False,):
                config = replace(config, pixel_table=table)
                yield replace(config, splits=splits(problem, config, device))
    yield replace(LAST_RESORT, splits=splits(problem, LAST_RESORT, device))


def splits(problem: ConvProblem, config: WeightGradConfig, device: DeviceSpec) -> int:
    """Parts that fill `WAVES` waves, no more than the workspace holds and than the pixels have whole steps for."""
    _, _, programs = tiles(problem, replace(config, splits=1))
    steps = math.ceil(pixels(problem) / config.block_k)
    wanted = math.ceil(WAVES * device.sm_count / max(programs, 1))
    most = max(0, WORKSPACE_BYTES - table_bytes(problem, config)) // max(workspace_bytes(problem, 1), 1)
    return max(1, min(wanted, most, steps // LEAST_STEPS))


def work(problem: ConvProblem, config: WeightGradConfig, device: DeviceSpec) -> Work:
    """What the weight gradient of `problem` with `config` does, the passes before and after included."""
    _, _, programs = tiles(problem, config)
    steps = pixels_per_split(problem, config) / config.block_k
    issued = programs * config.block_m * config.block_n * config.block_k * steps
    copies = config.block_n * config.block_k * problem.item_size / 16 / (config.num_warps * device.warp_size)
    loop = GemmLoop(
        programs=programs,
        trips=steps,
        blocks=(config.block_m, config.block_n, config.block_k),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        padding_efficiency=min(1.0, problem.macs / issued) if issued else 1.0,
        scattered=True,
        second_pass_bytes=2 * workspace_bytes(problem, config.splits),
        table_bytes=table_bytes(problem, config),
        more_instructions=0.0 if config.pixel_table else FIND_PIXEL * copies,
    )
    return gemm_work(problem, loop, device)


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[WeightGradConfig]:
    """The defaults with other stages and twice the splits."""
    return variants(
        defaults(problem, device), num_stages=(2, 3, 4), splits=lambda config: (config.splits, 2 * config.splits)
    )


def _why_not(problem: ConvProblem, config: WeightGradConfig, device: DeviceSpec) -> str | None:
    borrowed = workspace_bytes(problem, config.splits) + table_bytes(problem, config)
    if borrowed > WORKSPACE_BYTES and config.splits > 1:
        return f"its splits need {borrowed} bytes of workspace, the limit is {WORKSPACE_BYTES}"
    return None


MODEL = Model(defaults, _candidates, work, why_not=_why_not, tile=lambda config: (config.block_m, config.block_n))
