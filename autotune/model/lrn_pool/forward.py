"""The LRN + pool kernel in tuning: candidates, choice and cost model. Nothing here was measured.

The model is `streaming`'s: bytes across DRAM and L2 against issued instructions, and here also the pipe of square
roots, which takes two of each normalised value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.machine import SCHEDULERS, dram_us, l2_rate, machine_of, resident_programs
from grouped_conv.autotune.model.shared.model import Model
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US, Prediction, wave_efficiency
from grouped_conv.autotune.model.shared.streaming import EXPOSED, ROUND_LATENCY
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig, kept_lanes
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.device import DeviceSpec

ROOT_CLOCKS = {"cuda": 8, "hip": 16}
"""Clocks of the special-function pipe for one warp instruction: 4 lanes per clock (CUDA guide, CDNA3 ISA)."""
PER_PIXEL = 12
"""Instructions of one pixel besides its channels: addresses, loads, masks; read from compiled sm_80 code."""
PER_CHANNEL = 10
"""Instructions to convert and normalise one channel of a pixel, halo included; read from compiled sm_80 code."""
PER_OUTPUT = 2
"""Instructions to convert and store one pooled value; read from compiled sm_80 code."""
PER_THREAD = 120
"""Instructions before the first load; read from compiled sm_80 code."""
REGISTERS_PER_LANE = 1.45
"""Registers per row maximum of a thread, besides 30; compiled sm_80 code has 96, 128 and 168 with 48, 72 and 96."""
STRIPS = (1, 2, 3, 4)
CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16, 24)


def candidates(problem: LrnPoolProblem, device: DeviceSpec) -> Iterator[LrnPoolConfig]:
    """Strips of up to 4 pixels, and maps cut into up to 24 parts, or into rows."""
    out_h, out_w = problem.out_size
    heights = sorted({math.ceil(out_h / chunks) for chunks in (*CHUNKS, out_h)})
    for strip, rows in itertools.product(STRIPS, heights):
        yield LrnPoolConfig(num_warps=4, block=4 * device.warp_size, strip=min(strip, out_w), rows=rows)


def choose(problem: LrnPoolProblem, device: DeviceSpec) -> LrnPoolConfig:
    """The candidate predicted fastest, the first of equal ones; where none is valid, a plain one that is not."""
    valid = (config for config in candidates(problem, device) if why_invalid(problem, config, device) is None)
    best = min(valid, key=lambda config: predict(problem, config, device).us, default=None)
    return best or LrnPoolConfig(num_warps=4, block=4 * device.warp_size, strip=1, rows=problem.out_size[0])


def predict(
    problem: LrnPoolProblem, config: LrnPoolConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`.

    Args:
        resources: figures of the compiled kernel; only its registers are used.
    """
    machine, vec = machine_of(device), _vector_width(problem)
    out_h, out_w = problem.out_size
    chunks, strips = math.ceil(out_h / config.rows), math.ceil(out_w / config.strip)
    threads = problem.batch * strips * (problem.channels // vec)
    programs = chunks * math.ceil(threads / config.block)
    floor = 1e6 * problem.min_bytes / device.dram_bytes_per_s
    if not programs:
        return Prediction(0.0, 0.0, 1.0, 1.0, "launch", {})
    pixels, outputs = _work_of_thread(problem, config)
    instructions = PER_THREAD + pixels * (PER_PIXEL + PER_CHANNEL * vec) + outputs * vec * _per_output(problem)
    roots = 2 * vec * (pixels if problem.lrn_place == "before" else outputs if problem.lrn_place == "after" else 0)
    clock_us = 1e6 / device.clock_hz
    turns = math.ceil(programs / device.sm_count)
    warp_turns = turns * config.num_warps / SCHEDULERS
    read = programs * config.block * pixels * vec * problem.item_size
    terms = {
        "issue": warp_turns * instructions * machine.issue_clocks * clock_us,
        "roots": warp_turns * roots * ROOT_CLOCKS[device.backend] * clock_us,
        "l2": (read + math.prod(problem.output_shape) * problem.item_size) / l2_rate(device) * clock_us,
        "dram": dram_us(problem.min_bytes, device),
    }
    largest, total = max(terms.values()), sum(terms.values())
    registers = resources.registers if resources else 30 + round(REGISTERS_PER_LANE * kept_lanes(problem, config))
    rounds = math.ceil(turns / resident_programs(config.num_warps, device, 0, registers))
    terms["latency"] = rounds * ROUND_LATENCY * clock_us
    terms["launch"] = LAUNCH_US
    waiting = EXPOSED * (total - largest + terms["latency"]) + ROUND_LATENCY * clock_us
    useful = out_h * out_w / (chunks * config.rows * strips * config.strip)
    bound = max(terms, key=lambda name: terms[name])
    return Prediction(largest + waiting + LAUNCH_US, floor, useful, wave_efficiency(programs, device), bound, terms)


def _vector_width(problem: LrnPoolProblem) -> int:
    """Channels of one thread of a dense, aligned tensor."""
    width = 16 // problem.item_size
    while (problem.channels // problem.groups) % width:
        width //= 2
    return width


def _work_of_thread(problem: LrnPoolProblem, config: LrnPoolConfig) -> tuple[int, int]:
    """(pixels loaded, pooled pixels) of one thread."""
    (kernel_h, kernel_w), (stride_h, stride_w) = problem.kernel_size, problem.stride
    rows = max(kernel_h - stride_h, 0) + config.rows * min(stride_h, kernel_h)
    return rows * ((config.strip - 1) * stride_w + kernel_w), config.rows * config.strip


def _per_output(problem: LrnPoolProblem) -> int:
    """Instructions of one pooled value: maxima along the window's new rows, down the window, and the store."""
    (kernel_h, kernel_w), stride_h = problem.kernel_size, problem.stride[0]
    maxima = min(stride_h, kernel_h) * (kernel_w - 1) + kernel_h - 1
    return maxima + PER_OUTPUT + (PER_CHANNEL if problem.lrn_place == "after" else 0)


MODEL = Model(candidates, timed=predict, uses_tensor_cores=False)
