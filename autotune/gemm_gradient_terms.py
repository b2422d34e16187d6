"""What the cost models of the dot-product gradients share. Nothing here was measured; assumed figures say so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grouped_conv.autotune.machine import dram_us, machine_of
from grouped_conv.autotune.prediction import Prediction
from grouped_conv.autotune.resources import Resources
from grouped_conv.autotune.streaming import Work, predict_stream
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem

PROGRAM_INSTRUCTIONS = 400
"""Instructions of a warp outside its loop: pixels, tap bits, the epilogue; read from compiled sm_80 code."""
TRIP_INSTRUCTIONS = {True: 90, False: 40}
"""Instructions of a trip besides products and copies: index arithmetic of a flat reduction, of whole channel blocks."""
PER_COPY = 4
"""Instructions of one 16-byte copy to shared memory with its address and mask, and of reading it back."""


@dataclass(frozen=True, slots=True)
class GemmWork:
    """The main launch of a dot-product gradient.

    Attributes:
        programs: how many.
        trips: steps of the mean program's reduction.
        blocks: `(block_m, block_n, block_k)`.
        num_warps, num_stages: of the configuration.
        padding_efficiency: useful products / products issued, zeros of packs aside.
        scattered: whether a step's columns are found by division.
        second_pass_bytes: what the workspace costs, written and read.
    """

    programs: int
    trips: float
    blocks: tuple[int, int, int]
    num_warps: int
    num_stages: int
    padding_efficiency: float
    scattered: bool
    second_pass_bytes: int = 0


def predict_gemm(
    problem: ConvProblem, work: GemmWork, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """The prediction for one gradient.

    Args:
        resources: figures of the compiled main kernel; estimated when absent.
    """
    block_m, block_n, block_k = work.blocks
    threads = work.num_warps * device.warp_size
    machine = machine_of(device)
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    operands = (block_m + block_n) * block_k * problem.item_size
    products = block_m * block_n * block_k
    wide = machine.mma in ("wgmma", "tcgen05") and block_m >= 64
    multiply = products / (16 * 8 * 16) / work.num_warps / (8 if wide else 1)
    loop = multiply + PER_COPY * operands / 16 / threads + TRIP_INSTRUCTIONS[work.scattered]
    if resources and resources.loop:
        loop = resources.loop.instructions
    registers = resources.registers if resources else min(255, 60 + (block_m * block_n + operands // 8) // threads)
    second_us = dram_us(work.second_pass_bytes, device)
    return predict_stream(
        problem,
        device,
        Work(
            programs=work.programs,
            num_warps=work.num_warps,
            instructions=PROGRAM_INSTRUCTIONS + work.trips * loop,
            tensor_clocks=2 * products * work.trips / per_clock,
            l2_bytes=work.programs * work.trips * operands,
            dram_bytes=problem.min_bytes,
            registers=registers,
            shared_bytes=resources.shared_bytes if resources else math.ceil(operands * max(work.num_stages - 1, 1)),
            padding_efficiency=work.padding_efficiency,
        ),
        (second_us, 1) if work.second_pass_bytes else (0.0, 0),
    )
