"""Which configurations of the ragged weight gradient to look at, and how long they may take: predicted, not measured.

Model: the streaming one with the mean program of all table rows. Instructions per trip are counted from compiled loops;
the splits' sums are written and read once, and adding them is one more launch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.ragged.registers import fits_registers
from grouped_conv.autotune.model.shared.candidates import best_first, judged
from grouped_conv.autotune.model.shared.gemm_gradient import known_bytes, loading_instructions
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WORKSPACE_BYTES, pixels, pixels_per_split
from grouped_conv.kernels.ragged.forward_rules import traits, weight_elements
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig, tiles, why_invalid, why_not_on
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

LAST_RESORT = RaggedWeightGradConfig(block_m=16, block_n=32, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""
LOAD_COST, PROGRAM_COST, MMA_PRODUCTS = 60.0, 700.0, 16 * 8 * 16
"""Instructions of one warp per load of an operand's vector, and per program besides its loop; products of one `mma`. A
64x128x32 loop of four warps has 400 instructions, 32 of them `mma`, for 6 vector loads on sm_80."""
TILES = ((64, 128, 4), (64, 64, 4), (32, 128, 4), (32, 64, 4), (16, 64, 4))
PROGRAMS_PER_MULTIPROCESSOR = 2
"""Programs that splits should give each multiprocessor; assumed."""


def predict(
    problem: ConvProblem, config: RaggedWeightGradConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`; compiled code gives registers and shared memory."""
    _, programs = tiles(problem, config)
    trips = pixels_per_split(problem, config) / config.block_k
    products = config.block_m * config.block_n * config.block_k
    issued = programs * trips * products
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    aligned = traits(problem.layout)
    vector = min(aligned.out_align, aligned.in_align) * problem.item_size
    known = config.block_m * config.block_k * problem.item_size * (problem.epilogue.activation != "none")
    operands = (config.block_m + config.block_n) * config.block_k * problem.item_size
    threads = config.num_warps * device.warp_size
    per_trip = products / MMA_PRODUCTS / config.num_warps + LOAD_COST * operands / min(vector, 16) / threads
    per_trip += loading_instructions(problem, config.block_m * config.block_k / threads, False)
    sums = 2.0 * 4 * config.splits * weight_elements(problem.layout, problem.taps)
    work = Work(
        programs=programs,
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + trips * per_trip,
        tensor_clocks=2 * trips * products / per_clock,
        l2_bytes=programs * trips * (operands + known) + sums,
        dram_bytes=problem.min_bytes + known_bytes(problem) + sums,
        registers=resources.registers if resources else 40 + config.block_m * config.block_n // threads * 3,
        shared_bytes=resources.shared_bytes if resources else max(config.num_stages - 1, 1) * (operands + known),
        padding_efficiency=min(1.0, problem.macs / issued) if issued else 1.0,
    )
    return predict_stream(problem, device, work, (0.0, 1))


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedWeightGradConfig]:
    """A few tiles no taller than the largest group's, with splits that fill the device; the last resort last."""
    if problem.layout.is_uniform:
        return
    most = max(problem.layout.outputs)
    for block_m, block_n, warps in TILES:
        if block_m > 16 and block_m >= 2 * most:
            continue
        stages = 3 if device.backend == "cuda" else 2
        tile = RaggedWeightGradConfig(block_m=block_m, block_n=block_n, num_warps=warps, num_stages=stages)
        config = replace(tile, splits=filling_splits(problem, tile, device))
        if _usable(problem, config, device) and fits_registers(problem, config, device):
            yield config
    yield LAST_RESORT


def filling_splits(problem: ConvProblem, config: RaggedWeightGradConfig, device: DeviceSpec) -> int:
    """Splits that give the device `PROGRAMS_PER_MULTIPROCESSOR`, within the steps and the workspace there are."""
    rows, _ = tiles(problem, config)
    steps = max(1, math.ceil(pixels(problem) / config.block_k))
    room = max(1, WORKSPACE_BYTES // (4 * weight_elements(problem.layout, problem.taps)))
    return max(1, min(steps, room, PROGRAMS_PER_MULTIPROCESSOR * device.sm_count // rows))


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[RaggedWeightGradConfig]:
    """What of the space is worth compiling, best first by the model."""
    return best_first(problem, device, space(problem, device), predict)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[RaggedWeightGradConfig, str | None]]:
    """Tiles, depths, stages and splits; each with the reason that leaves it out."""

    if problem.layout.is_uniform:
        return iter(())

    def configs() -> Iterator[RaggedWeightGradConfig]:
        for (block_m, block_n, warps), depth, stages in itertools.product(TILES, (16, 32, 64), (1, 2, 3)):
            tile = RaggedWeightGradConfig(block_m=block_m, block_n=block_n, num_warps=warps)
            tile = replace(tile, block_k=depth, num_stages=stages)
            full = filling_splits(problem, tile, device)
            for splits in sorted({1, max(1, full // 2), full}):
                yield replace(tile, splits=splits)

    return judged(problem, device, configs())


def _usable(problem: ConvProblem, config: RaggedWeightGradConfig, device: DeviceSpec) -> bool:
    return why_invalid(problem, config) is None and why_not_on(problem, config, device) is None
