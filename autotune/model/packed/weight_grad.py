"""The packed weight gradient in tuning: defaults, search space and cost model. Nothing here was measured.

Model: the streaming one, and a second pass that adds the splits. L1 keeps a step's pixels between taps; each step
reads the rows above and below from L2 again; products across groups cost the multiply pipe as much as those within.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.packed.packs import MOST_CHANNELS, WIDTHS, is_thin, packs, runs, spilling
from grouped_conv.autotune.model.shared.gemm_gradient import derived_in_fp32, known_bytes
from grouped_conv.autotune.model.shared.machine import (
    dram_us,
    multiply_clocks,
    products_per_multiply,
    scalar_products,
)
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WORKSPACE_BYTES, workspace_bytes
from grouped_conv.kernels.packed.rules import MAX_WIDTH
from grouped_conv.kernels.packed.weight_grad_rules import (
    PackedWeightGradConfig,
    accumulators,
    block_m,
    block_n,
    columns,
    grid,
    kernel_rows,
    programs,
    steps_each,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

STRIPS = (4, 7, 8, 2, 1)
"""A 3x3 layer of 4 channels per group takes 9.8 instructions per input value on sm_80 with strips of 4, 20.9 with 1."""
PROGRAMS_PER_MULTIPROCESSOR = 12
"""Programs of one warp that registers let a multiprocessor hold in compiled 3x3 layers (11 to 15)."""
FP32_REGISTERS = 232
"""Registers per thread where a derivative is taken in fp32: ptxas stops at 168, for 12 programs, and spills 8 bytes."""
LEAST_STEPS = 4
"""Steps of a split at least: a program's indices and stores cost about two steps."""
PROGRAM_COST, STEP_COST, INDEX_COST, LOAD_COST, MMA_COST = 700.0, 20.0, 70.0, 5.5, 1.5
"""Instructions of one warp per program, per step, per strip of a thread, per vector load (predicate, address, copy to
shared memory) and per multiply (its operands); fitted to compiled 3x3 layers on sm_80 and sm_90 (within 15 %)."""


def work(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> Work:
    """What both launches of the weight gradient of `problem` with `config` do."""
    steps = steps_each(problem, config)
    products = steps * _products(problem, config) * _repeats(problem, config)
    partial = workspace_bytes(problem, config.splits)
    pixels = problem.batch * math.prod(problem.out_size)
    return Work(
        programs=programs(problem, config),
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + steps * _step_instructions(problem, config, device),
        tensor_clocks=multiply_clocks(products, problem, device),
        l2_bytes=_l2_bytes(problem, config) + partial,
        dram_bytes=problem.min_bytes + known_bytes(problem),
        registers=min(255, 70 + sum(_register_terms(problem, config, device))),
        shared_bytes=0,
        padding_efficiency=pixels / max(1, steps * config.splits * config.block_k * config.strip),
        passes_us=dram_us(partial + workspace_bytes(problem, 1) / 2, device),
        passes=1,
    )


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedWeightGradConfig]:
    """For packs of 16 and of 32 channels the widest strip whose sums fit the registers, all kernel rows or one."""
    if not is_thin(problem, MOST_CHANNELS):
        return
    for pack, rows in itertools.product(packs(problem, WIDTHS[:2]), (0, 1)):
        configs = (_configuration(problem, device, pack, strip, rows) for strip in _strips(problem))
        fitting = (config for config in configs if runs(problem, config, device, _fits_registers))
        yield from itertools.islice(fitting, 1)


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedWeightGradConfig]:
    """Widths, strips, kernel rows, steps, warps, splits."""
    if not is_thin(problem, MAX_WIDTH):
        return iter(())
    starts = itertools.product(packs(problem, WIDTHS), STRIPS, (0, 1, 2))

    def splits(config: PackedWeightGradConfig) -> list[int]:
        return [_splits(problem, device, config, factor) for factor in (0.5, 1, 2)]

    return variants(
        (_configuration(problem, device, *start) for start in starts),
        block_k=(16, 32, 64),
        num_warps=(1, 2, 4),
        splits=splits,
    )


def _strips(problem: ConvProblem) -> list[int]:
    """Strips that fill the row first; a strip that hangs over it computes pixels that are not there."""
    wide = problem.out_size[1]
    if problem.kernel_size[1] == 1:
        return [1]
    return sorted(STRIPS, key=lambda strip: (math.ceil(wide / strip) * strip > wide * 1.15, STRIPS.index(strip)))


def _configuration(
    problem: ConvProblem, device: DeviceSpec, pack: int, strip: int, rows: int
) -> PackedWeightGradConfig:
    """One warp for each 16 output channels (more repeat its work); steps that all threads load 16 bytes of."""
    rows = 0 if rows >= problem.kernel_size[0] else rows
    config = PackedWeightGradConfig(pack=pack, strip=strip, rows=rows)
    warps = min(4, max(1, block_m(problem, config) // 16))
    block_k = 16 if device.backend == "cuda" else 32
    if strip == 1:
        block_k *= 2
    if scalar_products(problem, device):
        block_k = 16
    registers = FP32_REGISTERS if device.backend == "cuda" and derived_in_fp32(problem) else 0
    block_k = block_k * warps if strip == 1 else block_k
    config = replace(config, num_warps=warps, block_k=block_k, max_registers=registers)
    return replace(config, splits=_splits(problem, device, config, 1))


def _splits(problem: ConvProblem, device: DeviceSpec, config: PackedWeightGradConfig, factor: float) -> int:
    """Parts that fill the device about once, each with a few steps, and a workspace that stays small."""
    _, steps, packs, parts = grid(problem, config)
    wanted = factor * device.sm_count * PROGRAMS_PER_MULTIPROCESSOR / config.num_warps / (packs * parts)
    fitting = WORKSPACE_BYTES // max(1, workspace_bytes(problem, 1))
    return max(1, min(round(wanted), steps // LEAST_STEPS, fitting))


def _repeats(problem: ConvProblem, config: PackedWeightGradConfig) -> float:
    """How often each product is computed: warps beyond one for 16 output channels repeat."""
    return max(1.0, config.num_warps / (block_m(problem, config) // 16))


def _products(problem: ConvProblem, config: PackedWeightGradConfig) -> int:
    """Products of one step, those across groups included."""
    taps = kernel_rows(problem, config) * problem.kernel_size[1]
    return config.block_k * config.strip * taps * block_m(problem, config) * block_n(problem, config)


def _loads(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> float:
    """Vector loads of one thread in one step."""
    reading = config.strip * block_m(problem, config) * (1 + (problem.epilogue.activation != "none"))
    reading += kernel_rows(problem, config) * columns(problem, config) * block_n(problem, config)
    width = math.gcd(16, math.gcd(problem.c_per_group, problem.k_per_group) * config.pack * problem.item_size)
    threads = device.warp_size * config.num_warps
    return reading * config.block_k * problem.item_size / width / threads


def _step_instructions(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> float:
    """Instructions of one warp for one step."""
    threads = device.warp_size * config.num_warps
    positions = config.block_k * block_n(problem, config) * problem.item_size / 16 / threads
    products = _products(problem, config) * _repeats(problem, config)
    multiplies = products / config.num_warps / products_per_multiply(problem, device)
    guard = 1 if device.backend == "cuda" else 3  # AMD's compiler guards each masked load with a branch
    return (
        STEP_COST
        + INDEX_COST * max(1.0, positions)
        + guard * LOAD_COST * _loads(problem, config, device)
        + MMA_COST * multiplies
    )


def _register_terms(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> tuple[int, int]:
    """(sums, registers of a step's tiles of one kernel row) per thread."""
    threads = device.warp_size * config.num_warps
    tiles = config.strip * block_m(problem, config) + columns(problem, config) * block_n(problem, config)
    return accumulators(problem, config, device.warp_size), tiles * config.block_k * problem.item_size // 4 // threads


def _fits_registers(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> bool:
    """Is the code expected not to spill? By compiled layers: 72 sums and 80 registers of tiles fit, 144 sums do not."""
    sums, tiles = _register_terms(problem, config, device)
    if scalar_products(problem, device):
        return sums <= 32 and tiles <= 64
    if device.backend == "hip":
        return sums + tiles <= 250
    return sums <= 112 and sums + tiles <= 160


def _l2_bytes(problem: ConvProblem, config: PackedWeightGradConfig) -> float:
    """Bytes asked of L2: the output's gradient once per part of the kernel, each step's input rows once."""
    strips, _, _, parts = grid(problem, config)
    rows = max(1.0, config.block_k / max(strips, 1)) * problem.stride[0]
    reach = problem.dilation[0] * (kernel_rows(problem, config) - 1) + 1
    inputs = math.prod(problem.input_shape) * problem.item_size
    outputs = math.prod(problem.output_shape) * problem.item_size + known_bytes(problem)
    return parts * (outputs + inputs * max(1.0, (rows + reach - problem.stride[0]) / rows))


MODEL = Model(defaults, _candidates, work, why_not=spilling(_fits_registers))
