"""The packed-groups kernel in tuning: defaults, search space and cost model. Nothing here was measured.

Model: the streaming one. Instructions per tile are estimated from counts of compiled kernels; L1 keeps a tile's pixels
between taps and columns, rows above and below are asked of L2 again by each tile; the zeros off the diagonal cost the
multiply pipe as much as products do.
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
from grouped_conv.autotune.model.shared.machine import (
    machine_of,
    multiply_clocks,
    products_per_multiply,
    scalar_products,
)
from grouped_conv.autotune.model.shared.model import Model
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.packed.forward_rules import (
    PackedGroupsConfig,
    block_k,
    block_n,
    columns,
    grid,
    isolates,
    programs,
    shared_memory,
)
from grouped_conv.kernels.packed.rules import MAX_PRODUCTS, MAX_WIDTH
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

STRIPS = (8, 7, 4, 2, 1)
PROGRAMS_PER_MULTIPROCESSOR = 6
"""Programs of 2 warps that registers and shared memory let a multiprocessor hold in compiled 3x3 layers (5 to 8)."""
LOAD_COST, OUTPUT_COST, TILE_COST, PROGRAM_COST = 4.5, 3.0, 80.0, 400.0
"""Instructions of one warp per vector load (address, predicate, zeros, copy to shared memory), per output value of a
thread, per tile and per program; fitted to compiled 3x3 layers on sm_80 and sm_90 (within 15 %)."""


def work(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> Work:
    """What the call of `problem` with `config` does."""
    issued = _products(problem, config) * config.tiles_per_program
    rate = 1.0 if scalar_products(problem, device) else machine_of(device).mma_register_rate
    limit = config.max_registers or (255 if device.backend == "cuda" else 512)
    return Work(
        programs=programs(problem, config),
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + config.tiles_per_program * _tile_instructions(problem, config, device),
        tensor_clocks=multiply_clocks(issued, problem, device) / rate,
        l2_bytes=_l2_bytes(problem, config),
        dram_bytes=problem.min_bytes,
        registers=min(limit, 90 + sum(_register_terms(problem, config, device))),
        shared_bytes=shared_memory(problem, config),
        padding_efficiency=_pixel_efficiency(problem, config),
    )


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedGroupsConfig]:
    """For packs of 16 and of 32 channels each strip, with programs to fill the device once."""
    if is_thin(problem, MOST_CHANNELS):
        yield from tile_defaults(problem, device, STRIPS, _configuration, _fits_registers)


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedGroupsConfig]:
    if max(problem.c_per_group, problem.k_per_group) <= MAX_WIDTH:
        yield from tile_candidates(problem, device, STRIPS, _configuration, _tiles_each)


def _configuration(problem: ConvProblem, device: DeviceSpec, pack: int, strip: int, ahead: int) -> PackedGroupsConfig:
    """With the tile that compiled best: 16 strips per warp on NVIDIA (no wgmma: 10.0 instructions per output on sm_90
    with 2 warps where 4 warps and wgmma take 20), 32 on AMD.
    """
    cuda = device.backend == "cuda"
    resident = problem.taps * strip <= MAX_PRODUCTS or strip > 1
    config = PackedGroupsConfig(
        block_m=32 if cuda else 64, pack=pack, strip=strip, rows_ahead=ahead if resident else 1, resident=resident
    )
    wide = max(block_k(problem, config), block_n(problem, config)) > 16 or problem.item_size == 4
    limit = 255 if wide or device.arch == 100 else 200  # at 200 one stride-2 layer spilled 8 bytes on sm_100
    config = replace(config, max_registers=limit if cuda else 0)
    return replace(config, tiles_per_program=_tiles_each(problem, device, config))


def _tiles_each(problem: ConvProblem, device: DeviceSpec, config: PackedGroupsConfig) -> int:
    """Tiles per program so that the device is filled about once; 1 to `MOST_TILES`."""
    _, tiles, packs = grid(problem, config)
    return max(1, min(MOST_TILES, tiles * packs // (device.sm_count * PROGRAMS_PER_MULTIPROCESSOR)))


def _products(problem: ConvProblem, config: PackedGroupsConfig) -> int:
    """Products that one tile issues, the zeros included."""
    return config.block_m * config.strip * problem.taps * block_k(problem, config) * block_n(problem, config)


def _loads(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> float:
    """Input loads of one thread for one tile, as wide as the runs of channels allow."""
    shuffle = problem.input_shuffle
    aligned = problem.c_per_group % shuffle == 0
    run = config.pack * problem.c_per_group // shuffle if aligned else 1
    width = math.gcd(16, run * problem.item_size, problem.in_channels // shuffle * problem.item_size)
    tile = config.block_m * block_k(problem, config) * problem.item_size
    threads = device.warp_size * config.num_warps
    return problem.kernel_size[0] * columns(problem, config) * tile / width / threads


def _tile_instructions(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> float:
    """Instructions of one warp for one tile."""
    threads = device.warp_size * config.num_warps
    outputs = config.block_m * config.strip * block_n(problem, config) / threads
    multiplies = _products(problem, config) / config.num_warps / products_per_multiply(problem, device)
    operands = _products(problem, config) / block_n(problem, config) / config.num_warps / 256 * problem.item_size / 2
    loads = LOAD_COST * (1 if device.backend == "cuda" else 2) * _loads(problem, config, device)
    reloads = 0.0 if config.resident else problem.taps * block_k(problem, config) * block_n(problem, config) / threads
    return TILE_COST + loads + operands + multiplies + (OUTPUT_COST + isolates(config)) * outputs + reloads


def _register_terms(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> tuple[int, int]:
    """(sums, registers of loads under way) per thread."""
    threads = device.warp_size * config.num_warps
    sums = config.block_m * config.strip * block_n(problem, config) // threads
    if not config.resident:
        return sums, 8
    rows = min(config.rows_ahead + 1, problem.kernel_size[0])
    tile = config.block_m * block_k(problem, config) * problem.item_size
    return sums, rows * columns(problem, config) * tile // 4 // threads


def _fits_registers(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> bool:
    """Is the code expected not to spill? By compiled layers: 56 sums and 120 loaded registers fit, 64 and 96 do,
    112 and 144 do not; on gfx942 112 and 144 fit, 112 and 240 spill.
    """
    sums, loaded = _register_terms(problem, config, device)
    if scalar_products(problem, device):
        return sums <= 8 and loaded <= 32
    if device.backend == "hip":
        return sums <= 128 and sums + loaded <= 340
    return sums <= 64 and sums + loaded <= 176


def _l2_bytes(problem: ConvProblem, config: PackedGroupsConfig) -> float:
    """Bytes asked of L2: outputs once, each tile's input rows once, weights once per program."""
    strips, _, _ = grid(problem, config)
    rows = max(1.0, config.block_m / max(strips, 1)) * problem.stride[0]
    reach = problem.dilation[0] * (problem.kernel_size[0] - 1) + 1
    halo = max(0, reach - problem.stride[0])
    inputs = math.prod(problem.input_shape) * problem.item_size
    weights = problem.taps * config.pack * problem.c_per_group * problem.k_per_group * problem.item_size
    return problem.min_bytes + inputs * halo / rows + programs(problem, config) * weights


def _pixel_efficiency(problem: ConvProblem, config: PackedGroupsConfig) -> float:
    """Output values wanted / computed. The zeros off the diagonal are left to the multiply pipe's term."""
    _, tiles, packs = grid(problem, config)
    computed = tiles * config.block_m * config.strip * packs * config.pack * problem.k_per_group
    return math.prod(problem.output_shape) / computed if computed else 1.0


MODEL = Model(
    defaults,
    _candidates,
    work,
    why_not=spilling(_fits_registers),
    tile=lambda config: (config.pack, config.strip),
)
