"""Which configurations of the ragged input gradient to look at, and how long they may take: a prediction, not measured.

Model: the streaming one with the mean program of all table rows. Instructions per trip are counted from compiled loops;
the parts of groups that share channels cross DRAM twice, and adding them is one more launch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.ragged.registers import fits_registers
from grouped_conv.autotune.model.shared.candidates import best_first, judged
from grouped_conv.autotune.model.shared.gemm_gradient import known_bytes, loading_instructions
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.input_grad_rules import (
    RaggedInputGradConfig,
    parts_width,
    readers,
    shares_channels,
    tiles,
    why_invalid,
    why_not_on,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

LAST_RESORT = RaggedInputGradConfig(block_m=32, block_n=16, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""
LOAD_COST, PROGRAM_COST, MMA_PRODUCTS = 19.0, 900.0, 16 * 8 * 16
"""Instructions of one warp per load of an operand's vector, and per program besides its loop; products of one `mma`. A
128x64x64 loop of four warps has 294 instructions, 64 of them `mma`, for 12 vector loads on sm_80."""
TILES = ((128, 64, 4), (128, 128, 8), (64, 64, 4), (128, 32, 4), (64, 32, 4), (64, 16, 4), (32, 32, 4))


def predict(
    problem: ConvProblem, config: RaggedInputGradConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`; compiled code gives registers and shared memory."""
    tiles_m, _, programs = tiles(problem, config)
    blocks = _blocks(problem, config)
    issued = blocks * tiles_m * config.block_m * config.block_n * config.block_k
    mean = issued / max(programs, 1)
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    vector = traits(problem.layout).out_align * problem.item_size
    operands = (config.block_m + config.block_n) * config.block_k * problem.item_size
    known = config.block_m * config.block_k * problem.item_size * (problem.epilogue.activation != "none")
    trips = mean / (config.block_m * config.block_n * config.block_k)
    threads = config.num_warps * device.warp_size
    per_trip = config.block_m * config.block_n * config.block_k / MMA_PRODUCTS / config.num_warps
    per_trip += LOAD_COST * operands / min(vector, 16) / threads
    per_trip += loading_instructions(problem, config.block_m * config.block_k / threads, False)
    parts = 2.0 * 4 * problem.batch * math.prod(problem.in_size) * parts_width(problem.layout)
    parts = parts if shares_channels(problem.layout) else 0.0
    work = Work(
        programs=programs,
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + trips * per_trip,
        tensor_clocks=2 * mean / per_clock,
        l2_bytes=blocks * tiles_m * (operands + known) + parts,
        dram_bytes=problem.min_bytes + known_bytes(problem) + parts,
        registers=resources.registers if resources else 40 + config.block_m * config.block_n // threads * 3,
        shared_bytes=resources.shared_bytes if resources else max(config.num_stages - 1, 1) * (operands + known),
        padding_efficiency=min(1.0, problem.macs / issued) if issued else 1.0,
    )
    return predict_stream(problem, device, work, (0.0, int(shares_channels(problem.layout))))


def _blocks(problem: ConvProblem, config: RaggedInputGradConfig) -> float:
    """Trips of one pixel tile of every class and table row together; a tap belongs to one class."""
    classes = math.prod(problem.stride)
    total = 0.0
    for reader in readers(problem.layout, problem.taps):
        columns = math.ceil(len(reader.inputs) / config.block_n)
        total += columns * classes * math.ceil(problem.taps * reader.outputs / classes / config.block_k)
    return total


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedInputGradConfig]:
    """A few tiles no wider than the widest group's, the last resort last."""
    if problem.layout.is_uniform:
        return
    widest = max(len(problem.layout.inputs_of(group)) for group in range(problem.groups))
    for (block_m, block_n, warps), depth in itertools.product(TILES, (64, 32)):
        if block_n > 16 and block_n >= 2 * widest:
            continue
        config = RaggedInputGradConfig(
            block_m=block_m,
            block_n=block_n,
            block_k=depth,
            num_warps=warps,
            num_stages=3 if device.backend == "cuda" else 2,
        )
        if _usable(problem, config, device) and fits_registers(problem, config, device):
            yield config
    yield LAST_RESORT


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[RaggedInputGradConfig]:
    """What of the space is worth compiling, best first by the model."""
    return best_first(problem, device, space(problem, device), predict)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[RaggedInputGradConfig, str | None]]:
    """Tiles, depths and stages; each with the reason that leaves it out."""

    if problem.layout.is_uniform:
        return iter(())
    configs = (
        RaggedInputGradConfig(block_m=block_m, block_n=block_n, num_warps=warps, block_k=depth, num_stages=stages)
        for (block_m, block_n, warps), depth, stages in itertools.product(TILES, (16, 32, 64), (1, 2, 3, 4))
    )
    return judged(problem, device, configs)


def _usable(problem: ConvProblem, config: RaggedInputGradConfig, device: DeviceSpec) -> bool:
    return why_invalid(problem, config) is None and why_not_on(problem, config, device) is None
