"""The fused separable kernel in tuning: defaults, search space and cost model. Nothing here was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.machine import machine_of, multiply_clocks, scalar_clocks
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_work
from grouped_conv.kernels.separable.forward_rules import (
    SeparableConfig,
    is_unrolled,
    shared_memory,
    slices_of,
    tiles,
)
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec

TILES = ((128, 128, 8), (64, 256, 8), (64, 128, 4), (256, 64, 8), (128, 64, 4), (256, 32, 8), (128, 32, 4),
         (128, 16, 4), (64, 64, 4), (64, 32, 4), (64, 16, 4))  # fmt: skip
"""(block_m, block_n, warps) worth comparing; at most 64 sums per thread. None spills (sm_80, sm_90, gfx942)."""
PROGRAM_INSTRUCTIONS = 250
"""Instructions of a warp outside its slices: indices, tap bits, the first loads' addresses."""


def defaults(problem: SeparableProblem, device: DeviceSpec) -> Iterator[SeparableConfig]:
    """The configurations that the planner of fusions compares; some may be invalid on the device."""
    for block_m, block_n, nvidia_warps in TILES:
        if block_n > 16 and block_n >= 2 * problem.out_channels:
            continue
        warps = min(nvidia_warps, 4) if device.backend == "hip" else nvidia_warps  # of 64 threads there
        for method, width, block_k in _methods(problem, device):
            yield SeparableConfig(
                block_m=block_m,
                block_n=block_n,
                width=width,
                block_k=block_k,
                method=method,
                num_warps=warps,
                num_stages=2,
            )


def _candidates(problem: SeparableProblem, device: DeviceSpec) -> Iterator[SeparableConfig]:
    """The defaults and their neighbours in width, depth of the pipeline and warps, each once."""
    found = variants(defaults(problem, device), width=(16, 32, 64), num_stages=(1, 2, 3), num_warps=(4, 8))
    yield from dict.fromkeys(found)


def _methods(problem: SeparableProblem, device: DeviceSpec) -> Iterator[tuple[str, int, int]]:
    """(method, width, block_k) worth comparing.

    Block-diagonal products of 16 channels beat multiplying channel by channel wherever tensor cores take them: 20
    instructions per intermediate value against 48 (3x3, 128x32, 4 warps, sm_80). Exact float32 has none of them.
    """
    first = problem.first
    depthwise = (first.c_per_group, first.k_per_group) == (1, 1)
    exact = problem.dtype == "float32" and first.precision != "tf32"
    if depthwise:
        yield "direct", 16, 16
    if not depthwise or not exact:
        yield "dot", 16, 16
        if max(first.c_per_group, first.k_per_group) > 1:
            yield "dot", 32, 32
        if min(first.c_per_group, first.k_per_group) >= 32:
            yield "dot", 64, 64


def predict(
    problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the fused kernel with `config` on `device`.

    Args:
        resources: figures of the compiled kernel; estimated when absent. Its instructions outside loops are unknown, so
            only registers, spills and shared memory are taken from it.
    """
    tiles_m, tiles_n, programs = tiles(problem, config)
    useful = problem.pixels * problem.out_channels
    issued = tiles_m * tiles_n * config.block_m * config.block_n
    work = Work(
        programs=programs,
        num_warps=config.num_warps,
        instructions=instructions(problem, config, device),
        tensor_clocks=_multiply_clocks(problem, config, device),
        l2_bytes=programs * _program_bytes(problem, config),
        dram_bytes=float(problem.min_bytes),
        registers=_registers(problem, config, device),
        shared_bytes=shared_memory(problem, config),
        padding_efficiency=useful / issued if issued else 1.0,
    )
    compute = 2 * problem.macs / device.peak_flops(problem.dtype, problem.first.precision)
    floor = 1e6 * max(compute, problem.min_bytes / device.dram_bytes_per_s)
    return predict_work(problem.first, device, work, resources, floor)


def instructions(problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> float:
    """Instructions that one warp issues for its program, before anything is compiled.

    Fitted to compiled slices of 3x3 kernels (fp16, 4 and 8 warps, sm_80 and sm_90; within about 15 %).
    """
    cut, threads = slices_of(problem, config), config.num_warps * device.warp_size
    vector = 16 // problem.item_size
    values, sums = config.block_m * cut.tile / threads, config.block_m * config.block_n / threads
    second = 1.5 * _multiplies(problem, config, device, config.block_n, cut.tile)
    second += 5 * config.block_n * cut.tile / vector / threads
    if config.method == "direct":
        step = 48 + 5 * values / vector + 2.2 * values
    else:
        run = min(vector, math.gcd(vector, problem.first.c_per_group))
        loads = config.block_m * cut.depth / vector / threads
        weights = cut.depth * cut.tile / run / threads
        step = 8 + 5 * loads + 4 * weights + _multiplies(problem, config, device, cut.tile, cut.depth)
        step += 0 if is_unrolled(problem, config) else 20
    one_slice = cut.trips(problem) * step + 30 + 2 * values + second
    return PROGRAM_INSTRUCTIONS + cut.count * one_slice + 4 * sums


def _multiplies(
    problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec, columns: int, depth: int
) -> float:
    """Multiply instructions of one warp for `block_m` by `columns` by `depth` products."""
    form, item = _form(problem, config, device), problem.item_size
    if form == "fma":
        return config.block_m * columns * depth / (device.warp_size * config.num_warps)
    if form == "wgmma":
        return config.block_m / 64 * depth / (32 / item) * 4 / config.num_warps
    size = 16 * 16 * (32 // item) if form == "mfma" else 16 * 8 * (32 // item)
    return config.block_m * columns * depth / size / config.num_warps


def _form(problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> str:
    """How products are taken: `fma`, `mma`, `wgmma` or `mfma`."""
    mma = machine_of(device).mma
    if problem.dtype == "float32" and problem.first.precision != "tf32" and mma != "mfma":
        return "fma"
    if mma == "mfma":
        return mma
    return "wgmma" if mma == "wgmma" and config.block_m >= 64 and config.num_warps % 4 == 0 else "mma"


def _multiply_clocks(problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> float:
    """Clocks of one multiprocessor's multiply pipes for one program, zeros of the packs included."""
    cut, first = slices_of(problem, config), problem.first
    rate = machine_of(device).mma_register_rate if _form(problem, config, device) == "mma" else 1.0
    clocks = multiply_clocks(config.block_m * config.block_n * cut.tile, first, device) / rate
    if config.method == "direct":
        return cut.count * (clocks + scalar_clocks(first.taps * config.block_m * cut.tile, device))
    products = cut.trips(problem) * config.block_m * cut.tile * cut.depth
    return cut.count * (clocks + multiply_clocks(products, first, device) / rate)


def _program_bytes(problem: SeparableProblem, config: SeparableConfig) -> float:
    """Bytes that one program asks of L2: its pixels' windows once (taps hit L1), both weights, its output."""
    first = problem.first
    rows = config.block_m / max(first.out_size[1], 1)
    halo = first.dilation[0] * (first.kernel_size[0] - 1) + 1 - first.stride[0]
    pixels = min(config.block_m * first.taps, (math.ceil(rows) * first.stride[0] + max(halo, 0)) * first.in_size[1])
    weights = math.prod(first.weight_shape) + config.block_n * problem.mid_channels
    values = pixels * first.in_channels + weights + config.block_m * config.block_n * (1 + problem.epilogue.residual)
    return values * problem.item_size


def _registers(problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> int:
    """Registers per thread before compiling: a slice's loads are all in flight where its steps are unrolled."""
    cut, threads = slices_of(problem, config), config.num_warps * device.warp_size
    depth = cut.tile if config.method == "direct" else cut.depth
    flying = cut.trips(problem) if is_unrolled(problem, config) else 1
    loads = flying * config.block_m * depth * problem.item_size / 4 / threads
    return min(255, math.ceil(loads + config.block_m * (config.block_n + cut.tile) / threads) + 70)


MODEL = Model(defaults, _candidates, timed=predict)
