"""The depthwise weight gradient in tuning: defaults and cost model. Nothing here was measured.

Splits are chosen so that programs fill the device a few times over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.depthwise.forward import channel_block
from grouped_conv.autotune.model.shared.activations import DERIVED_IN_THREADS
from grouped_conv.autotune.model.shared.gemm_gradient import known_bytes
from grouped_conv.autotune.model.shared.machine import dram_us, scalar_clocks
from grouped_conv.autotune.model.shared.model import Model
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.depthwise.weight_grad_rules import (
    DepthwiseWeightGradConfig,
    held,
    padding_efficiency,
    per_thread,
    walk_of,
)
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WORKSPACE_BYTES, workspace_bytes
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

FIXED = 150
"""Instructions of a thread outside its loop, besides the sums that it adds up at the end; assumed."""
STEP = 60
"""Instructions of a step besides loads and products: pixels carried on, addresses; assumed."""
LOAD = 4
REDUCTION = 40
"""Instructions that add one sum over a program's threads and store it; assumed."""
PROGRAMS_PER_SM = 4


def work(problem: ConvProblem, config: DepthwiseWeightGradConfig, device: DeviceSpec) -> Work:
    """What both launches of the weight gradient of `problem` with `config` do."""
    walk = walk_of(problem, config)
    values = max(per_thread(config, device), 1.0)
    half = problem.item_size == 2
    pixels, taps = config.tile_h * config.tile_w, walk.rows * walk.columns
    window = 1
    for tile, stride, kernel, dilation in zip(
        (config.tile_h, config.tile_w), problem.stride, (walk.rows, walk.columns), problem.dilation, strict=True
    ):
        window *= len({o * stride + k * dilation for o in range(tile) for k in range(kernel)})
    derivative = DERIVED_IN_THREADS.of(problem.epilogue.activation)
    step = STEP + window * (LOAD + values * half) + values * pixels * taps * config.multipliers
    step += pixels * config.multipliers * (LOAD + values * (half + derivative))
    steps = walk.part // config.block_p
    workspace = workspace_bytes(problem, config.splits)
    again = walk.parts_h * walk.parts_w * walk.parts_m - 1
    program = config.block_p * config.block_c * pixels * taps * config.multipliers * steps
    return Work(
        programs=walk.programs,
        num_warps=config.num_warps,
        instructions=FIXED + steps * step + taps * config.multipliers * REDUCTION,
        tensor_clocks=scalar_clocks(program, device),
        l2_bytes=(problem.min_bytes + known_bytes(problem)) * (1 + again) + workspace,
        dram_bytes=problem.min_bytes + known_bytes(problem) + workspace,
        registers=int(min(255, 80 + held(problem, config, device))),
        padding_efficiency=padding_efficiency(problem, config),
        passes_us=dram_us(workspace, device) + LAUNCH_US,
        passes=1,
    )


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[DepthwiseWeightGradConfig]:
    """All taps of small kernels in one program, a row or a part of it of large ones, and splits to fill the device."""
    if problem.c_per_group != 1 or not problem.batch or 0 in problem.out_size:
        return
    kernel_h, kernel_w = problem.kernel_size
    multipliers = [part for part in (4, 2, 3, 1) if problem.k_per_group % part == 0]
    block_c = channel_block(problem)
    for multiplier in multipliers:
        for rows, columns in ((kernel_h, kernel_w), (1, kernel_w), (1, math.ceil(kernel_w / 4)), (1, 4), (1, 1)):
            for tile_w in (4, 2, 1):
                for values in (8, 4):
                    if tile_w > problem.out_size[1] or values * problem.item_size > 16:
                        continue
                    config = DepthwiseWeightGradConfig(
                        block_c=block_c,
                        block_p=max(1, 4 * device.warp_size * values // block_c),
                        tile_w=tile_w,
                        rows=rows if rows < kernel_h else 0,
                        columns=columns if columns < kernel_w else 0,
                        multipliers=multiplier,
                    )
                    yield replace(config, splits=_splits(problem, config, device))


def _splits(problem: ConvProblem, config: DepthwiseWeightGradConfig, device: DeviceSpec) -> int:
    """So many parts that each multiprocessor has a few programs, and the workspace stays small."""
    walk = walk_of(problem, config)
    wanted = math.ceil(PROGRAMS_PER_SM * device.sm_count * walk.splits / max(1, walk.programs))
    steps = math.ceil(walk.tiles / config.block_p)
    return max(1, min(wanted, math.ceil(steps / 4), WORKSPACE_BYTES // workspace_bytes(problem, 1)))


MODEL = Model(defaults, work=work, uses_tensor_cores=False)
