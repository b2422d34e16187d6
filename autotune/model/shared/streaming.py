"""The cost model of kernels that stream data: each program loads, computes and stores once. Bytes usually decide.

A family describes its call as `Work`; `predict_work` turns that into a predicted time.

Model: every multiprocessor runs `ceil(programs / multiprocessors)` programs, as many at a time as fit. Together they
cannot be faster than the instruction schedulers issue, the multiply pipe multiplies, or L2 and DRAM deliver; the
smaller terms are hidden but for a part. Each round of resident programs also waits once for its first load and last
store. Nothing here was measured; assumed figures say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.machine import SCHEDULERS, dram_us, l2_rate, machine_of, resident_programs
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US, Prediction, floor_us, pack_passes, wave_efficiency
from grouped_conv.kernels.values.device import DeviceSpec

EXPOSED = 0.15
"""Share of the smaller terms that the largest does not hide; assumed."""
ROUND_LATENCY = 2000
"""Clocks of one round of resident programs besides its throughput: launch, index arithmetic, load, store; assumed."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one call does.

    Attributes:
        programs: programs of the main launch.
        num_warps: warps of a program.
        instructions: that one warp issues outside `trips`.
        tensor_clocks: clocks of the multiply pipe of one multiprocessor for one program.
        l2_bytes: that all programs together ask of L2, re-reads and halos included.
        dram_bytes: that cross DRAM at least; compulsory bytes where re-reads hit L2.
        registers: per thread, before compiling.
        shared_bytes: per program, before compiling; None where shared memory never limits the programs that fit.
        padding_efficiency: useful products / products issued.
        trips, loop: trips of a loop and the instructions of one, which compiled code tells exactly.
        code: instructions of the whole code, where compiled code tells how far `instructions` are off; 0 elsewhere.
        passes_us, passes: time and launches of passes, besides those that move channels innermost.
    """

    programs: int
    num_warps: int
    instructions: float
    tensor_clocks: float
    l2_bytes: float
    dram_bytes: float
    registers: int
    shared_bytes: int | None = None
    padding_efficiency: float = 1.0
    trips: float = 0.0
    loop: float = 0.0
    code: float = 0.0
    passes_us: float = 0.0
    passes: int = 0

    def compiled(self, resources: Resources) -> Work:
        """The work with the compiled main kernel's own figures."""
        return replace(
            self,
            registers=resources.registers,
            shared_bytes=None if self.shared_bytes is None else resources.shared_bytes,
            instructions=self.instructions * (resources.total.instructions / self.code if self.code else 1.0),
            loop=resources.loop.instructions if resources.loop else self.loop,
        )


def predict_work(
    problem: Any, device: DeviceSpec, work: Work, resources: Resources | None = None, floor: float | None = None
) -> Prediction:
    """The prediction for one call.

    Args:
        resources: figures of the compiled main kernel; estimated when absent.
        floor: the roofline floor in microseconds; by default `problem`'s.
    """
    waves = wave_efficiency(work.programs, device)
    if not work.programs:
        return Prediction(0.0, 0.0, work.padding_efficiency, waves, "launch", {})
    work = work if resources is None else work.compiled(resources)
    machine = machine_of(device)
    turns = math.ceil(work.programs / device.sm_count)
    clock_us = 1e6 / device.clock_hz
    issue = (work.instructions + work.trips * work.loop) * work.num_warps / SCHEDULERS * machine.issue_clocks
    terms = {
        "issue": turns * issue * clock_us,
        "tensor": turns * work.tensor_clocks * clock_us,
        "l2": work.l2_bytes / l2_rate(device) * clock_us,
        "dram": dram_us(work.dram_bytes, device),
    }
    hidden, largest = sum(terms.values()), max(terms.values())
    rounds = math.ceil(turns / resident_programs(work.num_warps, device, work.shared_bytes or 0, work.registers))
    terms["latency"] = rounds * ROUND_LATENCY * clock_us
    packs_us, packs = pack_passes(problem, device)
    terms["passes"] = packs_us + work.passes_us
    terms["launch"] = (1 + packs + work.passes) * LAUNCH_US
    waiting = EXPOSED * (hidden - largest + terms["latency"]) + ROUND_LATENCY * clock_us
    total = largest + waiting + terms["passes"] + terms["launch"]
    bound = max(terms, key=lambda name: terms[name])
    floor = floor_us(problem, device) if floor is None else floor
    return Prediction(total, floor, work.padding_efficiency, waves, bound, terms)
