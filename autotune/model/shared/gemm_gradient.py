"""What the cost models of the dot-product gradients share. Nothing here was measured; assumed figures say so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.machine import dram_us, machine_of
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import ENTRY_BYTES
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

PROGRAM_INSTRUCTIONS = 400
"""Instructions of a warp outside its loop: pixels, tap bits, the epilogue; read from compiled sm_80 code."""
TRIP_INSTRUCTIONS = {True: 90, False: 40}
"""Instructions of a trip besides products and copies: index arithmetic of a flat reduction, of whole channel blocks."""
PER_COPY = 4
"""Instructions of one 16-byte copy to shared memory with its address and mask, and of reading it back."""
DERIVATIVE = {"none": 0, "relu": 3, "tanh": 5, "relu6": 6, "sigmoid": 6, "leaky_relu": 7, "hardswish": 13, "silu": 18}
"""Instructions per gradient that a thread loads for the activation's derivative, its operand's load included; others
`SLOW_DERIVATIVE`. Counted in AlexNet's conv2 and conv4 compiled for sm_80 and sm_90: a 128x64x64 loop of 8 warps grows
on sm_80 from 148 instructions to 299 with relu and to 1272 with silu, on sm_90 from 105 to 219 and 700."""
SLOW_DERIVATIVE = 44
SCALED = 1
"""The same for a scale, which only the input's gradient loads: 0.4 alone, 2 behind a relu, which then needs fp32."""


def loading_instructions(problem: ConvProblem, gradients: float, wide: bool) -> float:
    """Instructions of a thread for activation and scale where it loads so many gradients of a tile in one step.

    Args:
        wide: whether products are taken by wgmma; by mma two warps side by side hold the same rows, and compute both.
    """
    each = DERIVATIVE.get(problem.epilogue.activation, SLOW_DERIVATIVE)
    each += SCALED * (problem.epilogue.scale and problem.direction == "input_grad")
    return gradients * each * (1 if wide else 2)


def derived_in_fp32(problem: ConvProblem) -> bool:
    """Does loading a gradient take more than a choice between it and zero?"""
    scaled = problem.epilogue.scale and problem.direction == "input_grad"
    return scaled or problem.epilogue.activation not in ("none", "relu", "relu6")


def known_bytes(problem: ConvProblem) -> int:
    """Bytes of the map that the activation's derivative is read from."""
    return math.prod(problem.output_shape) * problem.item_size * (problem.epilogue.activation != "none")


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
        table_bytes: of the table that a launch before writes, or 0.
        more_instructions: of a trip, besides.
    """

    programs: int
    trips: float
    blocks: tuple[int, int, int]
    num_warps: int
    num_stages: int
    padding_efficiency: float
    scattered: bool
    second_pass_bytes: int = 0
    table_bytes: int = 0
    more_instructions: float = 0.0


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
    gradients = block_m * block_k * (1 if problem.epilogue.activation == "none" else 2)  # with what is known
    operands = (gradients + block_n * block_k) * problem.item_size
    products = block_m * block_n * block_k
    wide = machine.mma in ("wgmma", "tcgen05") and block_m >= 64
    multiply = products / (16 * 8 * 16) / work.num_warps / (8 if wide else 1)
    copied = (block_m + block_n) * block_k * problem.item_size
    loop = multiply + PER_COPY * copied / 16 / threads + TRIP_INSTRUCTIONS[work.scattered]
    loop += work.more_instructions + loading_instructions(problem, block_m * block_k / threads, wide)
    if resources and resources.loop:
        loop = resources.loop.instructions
    registers = resources.registers if resources else min(255, 60 + (block_m * block_n + copied // 8) // threads)
    passes_us = dram_us(work.second_pass_bytes + work.table_bytes, device)
    passes = bool(work.second_pass_bytes) + bool(work.table_bytes)
    read = operands + (ENTRY_BYTES * block_k if work.table_bytes else 0)
    return predict_stream(
        problem,
        device,
        Work(
            programs=work.programs,
            num_warps=work.num_warps,
            instructions=PROGRAM_INSTRUCTIONS + work.trips * loop,
            tensor_clocks=2 * products * work.trips / per_clock,
            l2_bytes=work.programs * work.trips * read,
            dram_bytes=problem.min_bytes + known_bytes(problem),
            registers=registers,
            shared_bytes=resources.shared_bytes if resources else math.ceil(operands * max(work.num_stages - 1, 1)),
            padding_efficiency=work.padding_efficiency,
        ),
        (passes_us, passes),
    )
