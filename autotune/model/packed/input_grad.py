"""Which packed input gradients to look at, and how long they may take: a prediction, nothing here was measured.

Model: the streaming one, as of the packed forward kernel, whose loop this is: instructions per tile are estimated from
counts of compiled kernels, and the zeros off the diagonal cost the multiply pipe as much as products do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.candidates import SPILLS, best_first, judged
from grouped_conv.autotune.model.shared.gemm_gradient import known_bytes
from grouped_conv.autotune.model.shared.machine import machine_of
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
from grouped_conv.kernels.packed.input_grad_rules import (
    PackedInputGradConfig,
    back,
    block_k,
    block_n,
    columns,
    grid,
    programs,
    shared_memory,
    why_invalid,
    why_not_on,
)
from grouped_conv.kernels.packed.rules import MAX_WIDTH
from grouped_conv.kernels.values.classes import class_size, most_taps
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MOST_CHANNELS = 32
"""Channels per group above which the tiles of `input_grad` are full without packing."""
WIDTHS = (16, 32, 64)
STRIPS = (7, 4, 2, 1)
"""A 3x3 layer of 4 channels per group takes 11.8 and 13.7 instructions per value on sm_80 with strips of 7 and 4."""
PROGRAMS_PER_MULTIPROCESSOR = 5
MOST_TILES = 32
PROGRAM_COST, TILE_COST, LOAD_COST, OUTPUT_COST, MMA_COST = 500.0, 90.0, 7.0, 4.4, 1.0
"""Instructions of one warp per program, per tile, per vector load, per output value of a thread and per multiply;
fitted to compiled 3x3 layers of strides 1 and 2 on sm_80 (within 10 %)."""


def predict(
    problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`; compiled code gives registers and shared memory."""
    count = programs(problem, config)
    issued = _products(problem, config) * config.tiles_per_program
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    rate = machine_of(device).mma_register_rate if not _scalar(problem, device) else 1.0
    computed = count * config.tiles_per_program * config.block_m * config.strip * config.pack * problem.c_per_group
    limit = config.max_registers or (255 if device.backend == "cuda" else 512)
    work = Work(
        programs=count,
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + config.tiles_per_program * _tile_instructions(problem, config, device),
        tensor_clocks=2 * issued / per_clock / rate,
        l2_bytes=_l2_bytes(problem, config),
        dram_bytes=problem.min_bytes + known_bytes(problem),
        registers=resources.registers if resources else min(limit, 90 + sum(_register_terms(problem, config, device))),
        shared_bytes=resources.shared_bytes if resources else shared_memory(problem, config),
        padding_efficiency=math.prod(problem.input_shape) / computed if computed else 1.0,
    )
    return predict_stream(problem, device, work)


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedInputGradConfig]:
    """For each width of 16 and 32 channels the strips that waste least, with programs to fill the device once."""
    if not _thin(problem, MOST_CHANNELS):
        return
    narrow = max(WIDTHS[0], max(problem.c_per_group, problem.k_per_group))
    for pack in sorted({_pack(problem, width) for width in (narrow, 32)}):
        for strip in STRIPS:
            for ahead in (1, 0):
                config = _configuration(problem, device, pack, strip, ahead)
                if _runs(problem, config, device):
                    yield config
                    break


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[PackedInputGradConfig]:
    """What of the space is worth compiling, best first by the model."""
    return best_first(problem, device, space(problem, device), predict)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[PackedInputGradConfig, str | None]]:
    """Widths, strips, tile heights, warps, loads ahead, tiles per program; each with the reason that leaves it out."""

    if not _thin(problem, MAX_WIDTH):
        return iter(())

    def configs() -> Iterator[PackedInputGradConfig]:
        packs = sorted({_pack(problem, width) for width in WIDTHS})
        for pack, strip, warps, ahead in itertools.product(packs, STRIPS, (1, 2, 4), (0, 1, 2)):
            base = replace(_configuration(problem, device, pack, strip, ahead), num_warps=warps)
            for block_m, factor in itertools.product((16, 32, 64), (0.5, 1, 2)):
                tiles = max(1, round(_tiles_each(problem, device, replace(base, block_m=block_m)) * factor))
                yield replace(base, block_m=block_m, tiles_per_program=tiles)

    return judged(
        problem, device, configs(), lambda config: None if _fits_registers(problem, config, device) else SPILLS
    )


def _thin(problem: ConvProblem, most: int) -> bool:
    """Are the groups equal and thin? One channel in is left to the depthwise kernel, which issues no idle products."""
    return problem.layout.is_uniform and 1 < problem.c_per_group <= most and problem.k_per_group <= most


def _runs(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> bool:
    if why_invalid(problem, config) is not None or why_not_on(problem, config, device) is not None:
        return False
    return _fits_registers(problem, config, device)


def _pack(problem: ConvProblem, width: int) -> int:
    """The largest power of two of groups that fits `width` channels: powers of two keep runs aligned."""
    fitting = max(1, width // max(problem.c_per_group, problem.k_per_group))
    return min(1 << (fitting.bit_length() - 1), 1 << (problem.groups - 1).bit_length())


def _configuration(
    problem: ConvProblem, device: DeviceSpec, pack: int, strip: int, ahead: int
) -> PackedInputGradConfig:
    """16 strips per warp on NVIDIA, 32 on AMD, as the packed forward kernel compiled best."""
    cuda = device.backend == "cuda"
    config = PackedInputGradConfig(
        block_m=32 if cuda else 64, pack=pack, strip=strip, rows_ahead=ahead, max_registers=255 if cuda else 0
    )
    return replace(config, tiles_per_program=_tiles_each(problem, device, config))


def _tiles_each(problem: ConvProblem, device: DeviceSpec, config: PackedInputGradConfig) -> int:
    """Tiles per program so that the device is filled about once; 1 to `MOST_TILES`."""
    _, tiles, packs = grid(problem, config)
    programs_wanted = device.sm_count * PROGRAMS_PER_MULTIPROCESSOR
    return max(1, min(MOST_TILES, tiles * packs * math.prod(problem.stride) // programs_wanted))


def _scalar(problem: ConvProblem, device: DeviceSpec) -> bool:
    return problem.dtype == "float32" and problem.precision != "tf32" and device.backend == "cuda"


def _products(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Products that one tile issues, the zeros included."""
    taps = math.prod(most_taps(problem))
    return config.block_m * config.strip * taps * block_k(problem, config) * block_n(problem, config)


def _tile_instructions(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> float:
    """Instructions of one warp for one tile."""
    threads = device.warp_size * config.num_warps
    outputs = config.block_m * config.strip * block_n(problem, config) / threads
    depth = 16 if problem.item_size == 2 else 8
    per_multiply = 16 * 8 * depth if device.backend == "cuda" else 16 * 16 * 16
    if _scalar(problem, device):
        per_multiply = device.warp_size
    multiplies = _products(problem, config) / config.num_warps / per_multiply
    width = math.gcd(16, config.pack * problem.k_per_group * problem.item_size)
    tile = config.block_m * block_k(problem, config) * problem.item_size
    loads = most_taps(problem)[0] * columns(problem, config) * tile / width / threads
    loads *= 1 + (problem.epilogue.activation != "none")
    guard = 1 if device.backend == "cuda" else 2  # AMD's compiler guards each masked load with a branch
    return TILE_COST + guard * LOAD_COST * loads + OUTPUT_COST * outputs + MMA_COST * multiplies


def _register_terms(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> tuple[int, int]:
    """(sums, registers of loads under way) per thread."""
    threads = device.warp_size * config.num_warps
    sums = config.block_m * config.strip * block_n(problem, config) // threads
    rows = min(config.rows_ahead + 1, most_taps(problem)[0])
    tile = config.block_m * block_k(problem, config) * problem.item_size
    return sums, rows * columns(problem, config) * tile // 4 // threads


def _fits_registers(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> bool:
    """Is the code expected not to spill? By compiled layers: 56 sums and 72 loaded registers fit, 64 and 40 (two kernel
    rows) do, 64 and 96 do not. Behind an activation 32 and 48 fit with tiles 16 channels wide, 16 and 48 with 32
    channels; 56 and 36 do not on sm_90, nor 32 and 32 with 32 channels, whose weights take four times as many.
    """
    sums, loaded = _register_terms(problem, config, device)
    weights = math.prod(most_taps(problem)) * block_k(problem, config) * block_n(problem, config) * problem.item_size
    weights //= 4 * device.warp_size * config.num_warps
    derived, scaled = problem.epilogue.activation != "none", problem.epilogue.scale
    if _scalar(problem, device):
        return sums <= 8 and loaded <= 32
    if device.backend == "hip":
        return sums <= 128 and sums + loaded * (2.5 if derived else 2 if scaled else 1) <= 260
    return sums <= 64 and (2 * sums + loaded + weights <= 152 if derived else sums + loaded <= 136)


def _l2_bytes(problem: ConvProblem, config: PackedInputGradConfig) -> float:
    """Bytes asked of L2: inputs once, each tile's output rows once for each class, weights once per program."""
    strips, _, _ = grid(problem, config)
    high, _ = class_size(problem)
    rows = min(max(1.0, config.block_m / max(strips, 1)), max(high, 1))
    halo = back(problem)[0] * (most_taps(problem)[0] - 1)
    read = math.prod(problem.output_shape) * problem.item_size + known_bytes(problem)
    weights = problem.taps * config.pack * problem.c_per_group * problem.k_per_group * problem.item_size
    classes = math.prod(problem.stride)
    return problem.min_bytes + read * (classes * (1 + halo / rows) - 1) + programs(problem, config) * weights
