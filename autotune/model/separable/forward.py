"""One kernel or two calls for a grouped convolution and the 1x1 convolution behind it: the planner, and its cost model.

Everything here is predicted. `plan_fusion` is a pure function of the problem and the device; its reason names what
decided: a limit of the device, how often the first convolution would be computed, or the predicted times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model import heuristic
from grouped_conv.autotune.model.cost import predict as predict_convolution
from grouped_conv.autotune.model.shared.machine import dram_us, machine_of
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
from grouped_conv.kernels.separable.forward_rules import (
    SeparableConfig,
    is_unrolled,
    shared_memory,
    slices_of,
    tiles,
    why_invalid,
    why_not_on,
)
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

TILES = ((128, 128, 8), (64, 256, 8), (64, 128, 4), (256, 64, 8), (128, 64, 4), (256, 32, 8), (128, 32, 4),
         (128, 16, 4), (64, 64, 4), (64, 32, 4), (64, 16, 4))  # fmt: skip
"""(block_m, block_n, warps) worth comparing; at most 64 sums per thread. None spills (sm_80, sm_90, gfx942)."""
PROGRAM_INSTRUCTIONS = 250
"""Instructions of a warp outside its slices: indices, tap bits, the first loads' addresses."""
MARGIN = 0.9
"""Share of the two calls' predicted time that the fused kernel must stay below: different models predict the two."""
CACHED_SHARE = 0.5
"""Share of L2 in which the tensor between two calls is taken to survive until the second reads it; assumed."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """The planner's answer.

    Attributes:
        config: the fused kernel's configuration, or None for two calls.
        reason: what decided, with its numbers; times are predicted.
        fused: the prediction of the best fused configuration; None where none fits.
        separate_us: predicted microseconds of the two calls.
    """

    config: SeparableConfig | None
    reason: str
    fused: Prediction | None
    separate_us: float

    @property
    def is_fused(self) -> bool:
        """True for one kernel."""
        return self.config is not None


def defaults(problem: SeparableProblem, device: DeviceSpec) -> Iterator[SeparableConfig]:
    """The configurations that the planner compares; some may be invalid on the device."""
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


def candidates(problem: SeparableProblem, device: DeviceSpec) -> Iterator[SeparableConfig]:
    """The space a tuner would search: the defaults and their neighbours in width, depth, pipeline and warps."""
    seen = set()
    for config in defaults(problem, device):
        for width in (16, 32, 64):
            for stages in (1, 2, 3):
                for warps in (4, 8):
                    other = replace(config, width=width, num_stages=stages, num_warps=warps)
                    if other not in seen and _fits(problem, other, device) is None:
                        seen.add(other)
                        yield other


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
        registers=resources.registers if resources else _registers(problem, config, device),
        shared_bytes=resources.shared_bytes if resources else shared_memory(problem, config),
        padding_efficiency=useful / issued if issued else 1.0,
    )
    found = predict_stream(problem.first, device, work)
    compute = 2 * problem.macs / device.peak_flops(problem.dtype, problem.first.precision)
    floor = 1e6 * max(compute, problem.min_bytes / device.dram_bytes_per_s) if programs else 0.0
    return replace(found, floor_us=floor)


@lru_cache(maxsize=4096)
def plan_fusion(problem: SeparableProblem, device: DeviceSpec) -> Fusion:
    """One kernel or two calls for `problem` on `device`, and why; a prediction, nothing is compiled."""
    separate = separate_us(problem, device)
    valid, reasons = [], []
    for config in defaults(problem, device):
        reason = _fits(problem, config, device)
        if reason is None:
            valid.append(config)
        else:
            reasons.append(reason)
    if not valid:
        reason = reasons[-1] if reasons else "the fused kernel has no configuration for such a problem"
        return Fusion(None, f"two calls: {reason}", None, separate)
    config = min(valid, key=lambda one: predict(problem, one, device).weighed_us)
    fused = predict(problem, config, device)
    again = tiles(problem, config)[1]
    times = f"predicted {fused.us:.1f} us in one kernel, {separate:.1f} us in two calls"
    saved = f"{problem.saved_bytes / 1e6:.1f} MB less memory traffic"
    if fused.us <= MARGIN * separate:
        return Fusion(config, f"fused: {times}; {saved}", fused, separate)
    cost = f"the first convolution would be computed {again} times" if again > 1 else f"bound by {fused.bound}"
    return Fusion(None, f"two calls: {times}; {cost} for {saved}", fused, separate)


def separate_us(problem: SeparableProblem, device: DeviceSpec) -> float:
    """Predicted microseconds of the two calls, each with the heuristic's configuration.

    Where the tensor between them fits L2, what memory traffic it costs calls that are bound by memory is taken off.
    """
    kept = problem.saved_bytes / 2 <= CACHED_SHARE * device.l2_bytes
    relief = dram_us(problem.saved_bytes / 2, device) if kept else 0.0
    total = 0.0
    for part in (problem.first, problem.second):
        found = _separate(part, device)
        total += found.us - (min(relief, found.us / 2) if found.bound == "dram" else 0.0)
    return total


def _separate(problem: ConvProblem, device: DeviceSpec) -> Prediction:
    return predict_convolution(problem, heuristic.choose(problem, device), device)


def _fits(problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> str | None:
    return why_invalid(problem, config) or why_not_on(problem, config, device)


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
    per_clock = device.peak_flops(problem.dtype, first.precision) / (device.sm_count * device.clock_hz)
    if _form(problem, config, device) == "mma":
        per_clock *= machine_of(device).mma_register_rate
    one = cut.trips(problem) * config.block_m * cut.tile * cut.depth
    clocks = 2 * config.block_m * config.block_n * cut.tile / per_clock
    if config.method == "direct":
        scalar = device.fp32_flops / (device.sm_count * device.clock_hz)
        return cut.count * (clocks + 2 * first.taps * config.block_m * cut.tile / scalar)
    return cut.count * (clocks + 2 * one / per_clock)


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
