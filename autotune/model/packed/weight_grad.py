"""Which packed weight gradients to look at, and how long they may take: a prediction, nothing here was measured.

Model: the streaming one, and a second pass that adds the splits. L1 keeps a step's pixels between taps; rows above and
below are asked of L2 again by each step; products across groups cost the multiply pipe as much as those within.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.candidates import SPILLS, best_first, judged
from grouped_conv.autotune.model.shared.gemm_gradient import derived_in_fp32, known_bytes
from grouped_conv.autotune.model.shared.machine import dram_us
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
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
    why_invalid,
    why_not_on,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MOST_CHANNELS = 32
"""Channels per group above which the tiles of `weight_grad` are full without packing."""
WIDTHS = (16, 32, 64)
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


def predict(
    problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the two launches of `problem` with `config` on `device`."""
    count = programs(problem, config)
    products = steps_each(problem, config) * _products(problem, config)
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    partial = workspace_bytes(problem, config.splits)
    registers = resources.registers if resources else min(255, 70 + sum(_register_terms(problem, config, device)))
    pixels = problem.batch * math.prod(problem.out_size)
    work = Work(
        programs=count,
        num_warps=config.num_warps,
        instructions=PROGRAM_COST + steps_each(problem, config) * _step_instructions(problem, config, device),
        tensor_clocks=2 * products * _repeats(problem, config) / per_clock,
        l2_bytes=_l2_bytes(problem, config) + partial,
        dram_bytes=problem.min_bytes + known_bytes(problem),
        registers=registers,
        shared_bytes=resources.shared_bytes if resources else 0,
        padding_efficiency=pixels / max(1, steps_each(problem, config) * config.splits * config.block_k * config.strip),
    )
    reduce_us = dram_us(partial + workspace_bytes(problem, 1) / 2, device)
    return predict_stream(problem, device, work, (reduce_us, 1))


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[PackedWeightGradConfig]:
    """For packs of 16 and of 32 channels the widest strip whose sums fit the registers, all kernel rows or one."""
    if not _thin(problem, MOST_CHANNELS):
        return
    narrow = max(WIDTHS[0], max(problem.c_per_group, problem.k_per_group))
    for pack in sorted({_pack(problem, width) for width in (narrow, 32)}):
        for rows in (0, 1):
            for strip in _strips(problem):
                config = _configuration(problem, device, pack, strip, rows)
                if _runs(problem, config, device):
                    yield config
                    break


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[PackedWeightGradConfig]:
    """What of the space is worth compiling, best first by the model."""
    return best_first(problem, device, space(problem, device), predict)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[PackedWeightGradConfig, str | None]]:
    """Widths, strips, steps, kernel rows, warps, splits; each with the reason that leaves it out."""

    if not _thin(problem, MAX_WIDTH):
        return iter(())

    def configs() -> Iterator[PackedWeightGradConfig]:
        packs = sorted({_pack(problem, width) for width in WIDTHS})
        for pack, strip, rows, block_k in itertools.product(packs, STRIPS, (0, 1, 2), (16, 32, 64)):
            base = replace(_configuration(problem, device, pack, strip, rows), block_k=block_k)
            for warps, factor in itertools.product((1, 2, 4), (0.5, 1, 2)):
                config = replace(base, num_warps=warps)
                yield replace(config, splits=_splits(problem, device, config, factor))

    return judged(
        problem, device, configs(), lambda config: None if _fits_registers(problem, config, device) else SPILLS
    )


def _thin(problem: ConvProblem, most: int) -> bool:
    """Are the groups equal and thin? One channel in is left to the depthwise kernel, which issues no idle products."""
    return problem.layout.is_uniform and 1 < problem.c_per_group <= most and problem.k_per_group <= most


def _runs(problem: ConvProblem, config: PackedWeightGradConfig, device: DeviceSpec) -> bool:
    if why_invalid(problem, config) is not None or why_not_on(problem, config, device) is not None:
        return False
    return _fits_registers(problem, config, device)


def _pack(problem: ConvProblem, width: int) -> int:
    """The largest power of two of groups that fits `width` channels: powers of two keep runs aligned."""
    fitting = max(1, width // max(problem.c_per_group, problem.k_per_group))
    return min(1 << (fitting.bit_length() - 1), 1 << (problem.groups - 1).bit_length())


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
    if problem.item_size == 4 and problem.precision == "ieee" and device.backend == "cuda":
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
    depth = 16 if problem.item_size == 2 else 8
    per_multiply = 16 * 8 * depth if device.backend == "cuda" else 16 * 16 * 16
    if problem.dtype == "float32" and problem.precision == "ieee" and device.backend == "cuda":
        per_multiply = device.warp_size
    multiplies = _products(problem, config) * _repeats(problem, config) / config.num_warps / per_multiply
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
    if problem.dtype == "float32" and problem.precision == "ieee" and device.backend == "cuda":
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
