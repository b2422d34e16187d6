"""What the models of the ragged gradients share: the loop's instructions, and which tiles fit NVIDIA's registers."""

from __future__ import annotations

from typing import NamedTuple

from grouped_conv.autotune.model.shared.gemm_gradient import MMA_PRODUCTS, known_bytes, loading_instructions
from grouped_conv.autotune.model.shared.machine import multiply_clocks
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MOST_INPUT_LOADS = 16
"""Loads of the layer's input per thread and step of the weight's gradient: 32 spilled 56 to 3,120 bytes."""
MOST_SUMS = 32
"""fp32 sums per thread of the input's gradient where loads are of 2 bytes: 64 spilled 330 to 750 bytes."""
MOST_LOADS = {4: 24, 8: 24, 16: 16}
"""Its loads per thread and step by their width in bytes: 36 of 4 bytes, and 20 of 16, spilled 16 to 48 bytes."""


class Loop(NamedTuple):
    """One gradient's main launch.

    Attributes:
        programs: how many.
        steps: of all programs' loops together.
        vector: bytes of one load.
        program_cost, load_cost: instructions of a warp per program besides its loop, and per vector load.
        buffered: bytes of the sums that a second pass reads, written and read.
        passes: launches after the main one.
    """

    programs: int
    steps: float
    vector: int
    program_cost: float
    load_cost: float
    buffered: float
    passes: int


def loop_work(
    problem: ConvProblem, config: RaggedInputGradConfig | RaggedWeightGradConfig, device: DeviceSpec, loop: Loop
) -> Work:
    """What a gradient with this loop does, taking the mean program of all table rows."""
    products = config.block_m * config.block_n * config.block_k
    operands = (config.block_m + config.block_n) * config.block_k * problem.item_size
    known = config.block_m * config.block_k * problem.item_size * (problem.epilogue.activation != "none")
    threads = config.num_warps * device.warp_size
    instructions = products / MMA_PRODUCTS / config.num_warps
    instructions += loop.load_cost * operands / min(loop.vector, 16) / threads
    instructions += loading_instructions(problem, config.block_m * config.block_k / threads, False)
    mean = loop.steps / max(loop.programs, 1)
    issued = loop.steps * products
    return Work(
        programs=loop.programs,
        num_warps=config.num_warps,
        instructions=loop.program_cost + mean * instructions,
        tensor_clocks=multiply_clocks(mean * products, problem, device),
        l2_bytes=loop.steps * (operands + known) + loop.buffered,
        dram_bytes=problem.min_bytes + known_bytes(problem) + loop.buffered,
        registers=40 + config.block_m * config.block_n // threads * 3,
        shared_bytes=max(config.num_stages - 1, 1) * (operands + known),
        padding_efficiency=min(1.0, problem.macs / issued) if issued else 1.0,
        passes=loop.passes,
    )


def fits_registers(
    problem: ConvProblem, config: RaggedInputGradConfig | RaggedWeightGradConfig, device: DeviceSpec
) -> bool:
    """Is the code expected not to spill? The limits are of layers compiled for sm_80 and sm_90."""
    if device.backend != "cuda":
        return True
    threads = config.num_warps * device.warp_size
    aligned = traits(problem.layout)
    run = min(aligned.in_align, aligned.out_align, 16 // problem.item_size)
    if config.direction == "weight_grad":
        return config.block_n * config.block_k <= MOST_INPUT_LOADS * run * threads
    width = run * problem.item_size
    if width < 4:
        return config.block_m * config.block_n <= MOST_SUMS * threads
    gradients = config.block_m * (1 if problem.epilogue.activation == "none" else 2)  # with the activation's operand
    return (gradients + config.block_n) * config.block_k <= MOST_LOADS[width] * run * threads
