"""The GEMM part of gradients: what loading through an activation costs, and the work of a dot-product kernel.

Nothing here was measured; assumed figures say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grouped_conv.autotune.model.shared.activations import DERIVED_IN_TILES
from grouped_conv.autotune.model.shared.machine import dram_us, machine_of, multiply_clocks
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import ENTRY_BYTES
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MMA_PRODUCTS = 16 * 8 * 16
"""Products of one `mma`."""
PROGRAM_INSTRUCTIONS = 400
"""Instructions of a warp outside its loop: pixels, tap bits, the epilogue; read from compiled sm_80 code."""
TRIP_INSTRUCTIONS = {True: 90, False: 40}
"""Instructions of a trip besides products and copies: index arithmetic of a flat reduction, of whole channel blocks."""
PER_COPY = 4
"""Instructions of one 16-byte copy to shared memory with its address and mask, and of reading it back."""
SCALED = 1
"""Instructions per gradient for a scale, which only the input's gradient loads: 0.4 alone, 2 after a relu, which then
needs fp32."""


def loading_instructions(problem: ConvProblem, gradients: float, wide: bool) -> float:
    """Instructions of a thread for activation and scale where it loads so many gradients of a tile in one step.

    Args:
        wide: whether products are taken by wgmma; by mma two warps side by side hold the same rows, and compute both.
    """
    each = DERIVED_IN_TILES.of(problem.epilogue.activation)
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
class GemmLoop:
    """The main launch of a dot-product gradient of equal groups.

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


def gemm_work(problem: ConvProblem, gemm: GemmLoop, device: DeviceSpec) -> Work:
    """What a gradient with this loop does."""
    block_m, block_n, block_k = gemm.blocks
    threads = gemm.num_warps * device.warp_size
    gradients = block_m * block_k * (1 if problem.epilogue.activation == "none" else 2)  # with what is known
    operands = (gradients + block_n * block_k) * problem.item_size
    products = block_m * block_n * block_k
    wide = machine_of(device).mma in ("wgmma", "tcgen05") and block_m >= 64
    copied = (block_m + block_n) * block_k * problem.item_size
    loop = products / MMA_PRODUCTS / gemm.num_warps / (8 if wide else 1)
    loop += PER_COPY * copied / 16 / threads + TRIP_INSTRUCTIONS[gemm.scattered]
    loop += gemm.more_instructions + loading_instructions(problem, block_m * block_k / threads, wide)
    read = operands + (ENTRY_BYTES * block_k if gemm.table_bytes else 0)
    return Work(
        programs=gemm.programs,
        num_warps=gemm.num_warps,
        instructions=PROGRAM_INSTRUCTIONS,
        trips=gemm.trips,
        loop=loop,
        tensor_clocks=multiply_clocks(products * gemm.trips, problem, device),
        l2_bytes=gemm.programs * gemm.trips * read,
        dram_bytes=problem.min_bytes + known_bytes(problem),
        registers=min(255, 60 + (block_m * block_n + copied // 8) // threads),
        shared_bytes=math.ceil(operands * max(gemm.num_stages - 1, 1)),
        padding_efficiency=gemm.padding_efficiency,
        passes_us=dram_us(gemm.second_pass_bytes + gemm.table_bytes, device),
        passes=bool(gemm.second_pass_bytes) + bool(gemm.table_bytes),
    )
