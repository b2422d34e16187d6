"""The packed input gradient in tuning: defaults, search space and cost model. Nothing here was measured.

Model: the streaming one, as for the packed forward kernel, which has the same loop. Instructions per tile are estimated
from counts of compiled kernels, and the zeros off the diagonal cost the multiply pipe as much as products do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.packed.packs import (
    MOST_CHANNELS,
    MOST_TILES,
    is_thin,
    spilling,
    tile_candidates,
    tile_defaults,
)
from grouped_conv.autotune.model.shared.gemm_gradient import known_bytes
from grouped_conv.autotune.model.shared.machine import (
    machine_of,
    multiply_clocks,
    products_per_multiply,
    scalar_products,
)
from grouped_conv.autotune.model.shared.model import Model
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.packed.input_grad_rules import (
    PackedInputGradConfig,
    back,
    block_k,
    block_n,
    columns,
    grid,
    programs,
    shared_memory,
)
from grouped_conv.kernels.packed.rules import MAX_WIDTH
from grouped_conv.kernels.values.classes import class_size, most_taps
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

STRIPS = (7, 4, 2, 1)
"""A 3x3 layer of 4 channels per group takes 11.8 and 13.7 instructions per value on sm_80 with strips of 7 and 4."""
PROGRAMS_PER_MULTIPROCESSOR = 5
PROGRAM_COST, TILE_COST, LOAD_COST, OUTPUT_COST, MMA_COST = 500.0, 90.0, 7.0, 4.4, 1.0
"""Instructions of one warp per program, per tile, per vector load, per output value of a thread and per multiply;
fitted to compiled 3x3 layers of strides 1 and 2 on sm_80 (within 10 %)."""


def work(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> Work:
    """What the input gradient of `problem` with `config` does."""
    count = programs(problem, config)
    issued = _products(problem, config) * config.tiles_per_program
    rate = 1.0 if scalar_products(problem, device) else machine_of(device).mma_register_rate
    computed = count * config.tiles_per_program * config.block_m * config.strip * config.pack * problem.c_per_group
    limit = config.max_registers or (255 if device.backend == "cuda" else 512)
    return Work(
        programs=count,
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + config.tiles_per_program * _tile_instructions(problem, config, device),
        tensor_clocks=multiply_clocks(issued, problem, device) / rate,
        l2_bytes=_l2_bytes(problem, config),
        dram_bytes=problem.min_bytes + known_bytes(problem),
        registers=min(limit, 90 + sum(_register_terms(problem, config, device))),
        shared_bytes=shared_memory(problem, config),
        padding_efficiency=math.prod(problem.input_shape) / computed if computed else 1.0,
    )


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedInputGradConfig]:
    """For packs of 16 and of 32 channels each strip, with programs to fill the device once."""
    if is_thin(problem, MOST_CHANNELS):
        yield from tile_defaults(problem, device, STRIPS, _configuration, _fits_registers)


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedInputGradConfig]:
    if is_thin(problem, MAX_WIDTH):
        yield from tile_candidates(problem, device, STRIPS, _configuration, _tiles_each)


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


def _products(problem: ConvProblem, config: PackedInputGradConfig) -> int:
    """Products that one tile issues, the zeros included."""
    taps = math.prod(most_taps(problem))
    return config.block_m * config.strip * taps * block_k(problem, config) * block_n(problem, config)


def _tile_instructions(problem: ConvProblem, config: PackedInputGradConfig, device: DeviceSpec) -> float:
    """Instructions of one warp for one tile."""
    threads = device.warp_size * config.num_warps
    outputs = config.block_m * config.strip * block_n(problem, config) / threads
    multiplies = _products(problem, config) / config.num_warps / products_per_multiply(problem, device)
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
    rows) do, 64 and 96 do not. With an activation 32 and 48 fit with tiles 16 channels wide, 16 and 48 with 32
    channels; 56 and 36 do not on sm_90, nor 32 and 32 with 32 channels, whose weights take four times as many.
    """
    sums, loaded = _register_terms(problem, config, device)
    weights = math.prod(most_taps(problem)) * block_k(problem, config) * block_n(problem, config) * problem.item_size
    weights //= 4 * device.warp_size * config.num_warps
    derived, scaled = problem.epilogue.activation != "none", problem.epilogue.scale
    if scalar_products(problem, device):
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


MODEL = Model(defaults, _candidates, work, why_not=spilling(_fits_registers))
