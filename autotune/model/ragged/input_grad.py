"""The ragged input gradient in tuning: defaults, search space and cost model. Nothing here was measured.

Model: the streaming one with the mean program of all table rows. Instructions per trip are counted in compiled loops;
the parts of groups that share channels cross DRAM twice, and one more launch adds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from grouped_conv.autotune.model.ragged.gradients import Loop, fits_registers, loop_work
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.input_grad_rules import (
    RaggedInputGradConfig,
    parts_width,
    readers,
    shares_channels,
    tiles,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

LAST_RESORT = RaggedInputGradConfig(block_m=32, block_n=16, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""
LOAD_COST, PROGRAM_COST = 19.0, 900.0
"""Instructions of one warp per load of an operand's vector, and per program besides its loop. A 128x64x64 loop of four
warps has 294 instructions, 64 of them `mma`, for 12 vector loads on sm_80."""
TILES = ((128, 64, 4), (128, 128, 8), (64, 64, 4), (128, 32, 4), (64, 32, 4), (64, 16, 4), (32, 32, 4))


def work(problem: ConvProblem, config: RaggedInputGradConfig, device: DeviceSpec) -> Work:
    """What the input gradient of `problem` with `config` does."""
    tiles_m, _, programs = tiles(problem, config)
    shared = shares_channels(problem.layout)
    parts = 2.0 * 4 * problem.batch * math.prod(problem.in_size) * parts_width(problem.layout) if shared else 0.0
    vector = traits(problem.layout).out_align * problem.item_size
    steps = _blocks(problem, config) * tiles_m
    loop = Loop(programs, steps, vector, PROGRAM_COST, LOAD_COST, parts, int(shared))
    return loop_work(problem, config, device, loop)


def _blocks(problem: ConvProblem, config: RaggedInputGradConfig) -> float:
    """Trips of one pixel tile of every class and table row together; a tap belongs to one class."""
    classes = math.prod(problem.stride)
    total = 0.0
    for reader in readers(problem.layout, problem.taps):
        columns = math.ceil(len(reader.inputs) / config.block_n)
        total += columns * classes * math.ceil(problem.taps * reader.outputs / classes / config.block_k)
    return total


def _tiles(depths: tuple[int, ...], stages: tuple[int, ...]) -> Iterator[RaggedInputGradConfig]:
    shapes = (
        RaggedInputGradConfig(block_m=block_m, block_n=block_n, num_warps=warps) for block_m, block_n, warps in TILES
    )
    return variants(shapes, block_k=depths, num_stages=stages)


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedInputGradConfig]:
    """A few tiles no wider than the widest group's, the last resort last."""
    widest = max(len(problem.layout.inputs_of(group)) for group in range(problem.groups))
    for config in _tiles((64, 32), (3 if device.backend == "cuda" else 2,)):
        if config.block_n > 16 and config.block_n >= 2 * widest:
            continue
        if why_invalid(problem, config, device) is None and fits_registers(problem, config, device):
            yield config
    yield LAST_RESORT


MODEL = Model(defaults, lambda problem, device: _tiles((16, 32, 64), (1, 2, 3, 4)), work)
