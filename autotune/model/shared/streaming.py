"""The cost model of kernels that stream: each program loads, computes and stores once, and bytes usually decide.

Model: every multiprocessor runs `ceil(programs / multiprocessors)` programs, as many at a time as fit. Together they
cannot be faster than the instruction schedulers issue, the multiply pipe multiplies, or L2 and DRAM deliver; the
smaller terms are hidden but for a part. Each round of resident programs also waits once for its first load and last
store. Nothing here was measured; assumed figures say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grouped_conv.autotune.model.shared.machine import SCHEDULERS, dram_us, l2_rate, machine_of, resident_programs
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US, Prediction, floor_us, pack_passes, wave_efficiency
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

EXPOSED = 0.15
"""Share of the smaller terms that the largest does not hide; assumed."""
ROUND_LATENCY = 2000
"""Clocks of one round of resident programs besides its throughput: launch, index arithmetic, load, store; assumed."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the main launch of a call does.

    Attributes:
        programs: how many.
        num_warps: warps of a program.
        instructions: that one warp issues in all.
        tensor_clocks: clocks of the multiply pipe of one multiprocessor for one program.
        l2_bytes: that all programs together ask of L2, re-reads and halos included.
        dram_bytes: that cross DRAM at least; compulsory bytes where re-reads hit L2.
        registers: per thread.
        shared_bytes: per program.
        padding_efficiency: useful products / products issued.
    """

    programs: int
    num_warps: int
    instructions: float
    tensor_clocks: float
    l2_bytes: float
    dram_bytes: float
    registers: int
    shared_bytes: int = 0
    padding_efficiency: float = 1.0


def predict_stream(
    problem: ConvProblem, device: DeviceSpec, work: Work, extra_passes: tuple[float, int] = (0.0, 0)
) -> Prediction:
    """The prediction for one call whose main launch does `work`.

    Args:
        extra_passes: (microseconds, launches) of passes besides those that move channels innermost.
    """
    waves = wave_efficiency(work.programs, device)
    if not work.programs:
        return Prediction(0.0, 0.0, work.padding_efficiency, waves, "launch", {})
    machine = machine_of(device)
    turns = math.ceil(work.programs / device.sm_count)
    clock_us = 1e6 / device.clock_hz
    issue = work.instructions * work.num_warps / SCHEDULERS * machine.issue_clocks
    terms = {
        "issue": turns * issue * clock_us,
        "tensor": turns * work.tensor_clocks * clock_us,
        "l2": work.l2_bytes / l2_rate(device) * clock_us,
        "dram": dram_us(work.dram_bytes, device),
    }
    largest = max(terms.values())
    rounds = math.ceil(turns / resident_programs(work.num_warps, device, work.shared_bytes, work.registers))
    terms["latency"] = rounds * ROUND_LATENCY * clock_us
    packs_us, packs = pack_passes(problem, device)
    terms["passes"] = packs_us + extra_passes[0]
    terms["launch"] = (1 + packs + extra_passes[1]) * LAUNCH_US
    hidden = sum(terms[name] for name in ("issue", "tensor", "l2", "dram")) - largest
    total = (
        largest + EXPOSED * (hidden + terms["latency"]) + ROUND_LATENCY * clock_us + terms["passes"] + terms["launch"]
    )
    bound = max(terms, key=lambda name: terms[name])
    return Prediction(total, floor_us(problem, device), work.padding_efficiency, waves, bound, terms)
