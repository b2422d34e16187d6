"""Which packed-groups configurations to look at, and how long they may take: a prediction, nothing here was measured.

Model: the streaming one. Instructions per tile are estimated from counts of compiled kernels; L1 keeps a tile's pixels
between taps and columns, rows above and below are asked of L2 again by each tile; the zeros off the diagonal cost the
multiply pipe as much as products do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.candidates import SPILLS, best_first, judged
from grouped_conv.autotune.model.shared.machine import machine_of
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
from grouped_conv.kernels.families import why_invalid
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

MOST_CHANNELS = 32
"""Channels per group above which the implicit GEMM's tiles are full without packing."""
STRIPS = (8, 7, 4, 2, 1)
WIDTHS = (16, 32, 64)
PROGRAMS_PER_MULTIPROCESSOR = 6
"""Programs of 2 warps that registers and shared memory let a multiprocessor hold in compiled 3x3 layers (5 to 8)."""
MOST_TILES = 32
LOAD_COST, OUTPUT_COST, TILE_COST, PROGRAM_COST = 4.5, 3.0, 80.0, 400.0
"""Instructions of one warp per vector load (address, predicate, zeros, copy to shared memory), per output value of a
thread, per tile and per program; fitted to compiled 3x3 layers on sm_80 and sm_90 (within 15 %)."""


def predict(
    problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`; compiled code gives registers and shared memory."""
    count = programs(problem, config)
    shared = resources.shared_bytes if resources else shared_memory(problem, config)
    registers = resources.registers if resources else _registers(problem, config, device)
    issued = _products(problem, config) * config.tiles_per_program
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    rate = machine_of(device).mma_register_rate if _on_tensor_cores(problem, device) else 1.0
    work = Work(
        programs=count,
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + config.tiles_per_program * _tile_instructions(problem, config, device),
        tensor_clocks=2 * issued / per_clock / rate,
        l2_bytes=_l2_bytes(problem, config),
        dram_bytes=problem.min_bytes,
        registers=registers,
        shared_bytes=shared,
        padding_efficiency=_pixel_efficiency(problem, config),
    )
    return predict_stream(problem, device, work)


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedGroupsConfig]:
    """For each width of 16 and 32 channels the strips that waste least, with programs to fill the device once."""
    if not problem.layout.is_uniform or max(problem.c_per_group, problem.k_per_group) > MOST_CHANNELS:
        return
    if problem.c_per_group == 1:  # 1 product of 16 would be useful; the depthwise kernel issues no others
        return
    narrow = min(WIDTHS[0], problem.groups * max(problem.c_per_group, problem.k_per_group))
    for pack in sorted({_pack(problem, width) for width in (max(narrow, 16), 32)}):
        for strip in STRIPS:
            for ahead in (1, 0):
                config = _configuration(problem, device, pack, strip, ahead)
                if why_invalid(problem, config, device) is None and _fits_registers(problem, config, device):
                    yield config
                    break


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[PackedGroupsConfig]:
    """What of the space is worth compiling, best first by the model."""
    return best_first(problem, device, space(problem, device), predict)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[PackedGroupsConfig, str | None]]:
    """Widths, strips, tile heights, warps, loads ahead, tiles per program; each with the reason that leaves it out."""

    if not problem.layout.is_uniform or max(problem.c_per_group, problem.k_per_group) > MAX_WIDTH:
        return iter(())

    def configs() -> Iterator[PackedGroupsConfig]:
        packs = sorted({_pack(problem, width) for width in WIDTHS})
        for pack, strip, warps, ahead in itertools.product(packs, STRIPS, (1, 2, 4), (0, 1, 2)):
            base = replace(_configuration(problem, device, pack, strip, ahead), num_warps=warps)
            for block_m, factor in itertools.product((16, 32, 64), (0.5, 1, 2)):
                tiles = max(1, round(_tiles_each(problem, device, replace(base, block_m=block_m)) * factor))
                yield replace(base, block_m=block_m, tiles_per_program=tiles)

    return judged(
        problem, device, configs(), lambda config: None if _fits_registers(problem, config, device) else SPILLS
    )


def _pack(problem: ConvProblem, width: int) -> int:
    """The largest power of two of groups that fits `width` channels: powers of two keep runs aligned."""
    fitting = max(1, width // max(problem.c_per_group, problem.k_per_group))
    return min(1 << (fitting.bit_length() - 1), 1 << (problem.groups - 1).bit_length())


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


def _on_tensor_cores(problem: ConvProblem, device: DeviceSpec) -> bool:
    return problem.dtype != "float32" or problem.precision == "tf32" or device.backend == "hip"


def _threads(config: PackedGroupsConfig, device: DeviceSpec) -> int:
    return device.warp_size * config.num_warps


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
    return problem.kernel_size[0] * columns(problem, config) * tile / width / _threads(config, device)


def _tile_instructions(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> float:
    """Instructions of one warp for one tile."""
    threads = _threads(config, device)
    outputs = config.block_m * config.strip * block_n(problem, config) / threads
    depth = 16 if problem.item_size == 2 else 8
    per_multiply = 16 * 8 * depth if device.backend == "cuda" else 16 * 16 * 16
    if not _on_tensor_cores(problem, device):
        per_multiply = device.warp_size
    multiplies = _products(problem, config) / config.num_warps / per_multiply
    operands = _products(problem, config) / block_n(problem, config) / config.num_warps / 256 * problem.item_size / 2
    loads = LOAD_COST * (1 if device.backend == "cuda" else 2) * _loads(problem, config, device)
    reloads = 0.0 if config.resident else problem.taps * block_k(problem, config) * block_n(problem, config) / threads
    return TILE_COST + loads + operands + multiplies + (OUTPUT_COST + isolates(config)) * outputs + reloads


def _registers(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> int:
    """Registers per thread before compiling."""
    limit = config.max_registers or (255 if device.backend == "cuda" else 512)
    return min(limit, 90 + sum(_register_terms(problem, config, device)))


def _register_terms(problem: ConvProblem, config: PackedGroupsConfig, device: DeviceSpec) -> tuple[int, int]:
    """(sums, registers of loads under way) per thread."""
    threads = _threads(config, device)
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
    if not _on_tensor_cores(problem, device):
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
    """Output values asked for / computed. The zeros off the diagonal are left to the multiply pipe's term."""
    _, tiles, packs = grid(problem, config)
    computed = tiles * config.block_m * config.strip * packs * config.pack * problem.k_per_group
    return math.prod(problem.output_shape) / computed if computed else 1.0
