"""The implicit GEMM's input gradient in tuning: defaults, search space and cost model. Nothing here was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from grouped_conv.autotune.model.shared.gemm_gradient import GemmLoop, derived_in_fp32, gemm_work
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.implicit_gemm.input_grad_rules import (
    MAX_PACKED_CHANNELS,
    InputGradConfig,
    packed,
    tiles,
    trips,
)
from grouped_conv.kernels.values.classes import class_size, most_taps
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

TILES = (
    (128, 128, 8),
    (128, 64, 4),
    (128, 64, 8),
    (64, 128, 8),
    (64, 64, 4),
    (32, 128, 4),
    (32, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (128, 16, 4),
    (32, 16, 4),
)
"""(block_m, block_n, warps) worth comparing."""
PACKED_COLUMNS = 32
"""Channels that thin groups are packed to; 64 doubles the products with zeros."""
LAST_RESORT = InputGradConfig(block_m=32, block_n=16, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[InputGradConfig]:
    """The configurations that the heuristic compares, the last resort last."""
    if problem.batch:
        fused = problem.epilogue.activation != "none" or problem.epilogue.scale
        widest = max(problem.c_per_group, problem.k_per_group)
        if problem.groups > 1 and widest <= MAX_PACKED_CHANNELS:
            pack = min(problem.groups, PACKED_COLUMNS // widest)
            yield InputGradConfig(block_m=128, block_n=32, block_k=32, pack=pack, num_warps=4, num_stages=2)
        m = problem.batch * math.prod(class_size(problem))
        for block_m, block_n, warps in TILES:
            if (block_m > 32 and block_m >= 2 * m) or (block_n > 16 and block_n >= 2 * problem.c_per_group):
                continue
            for block_k in (64, 32):
                if problem.dtype == "float32" and block_k == 64:
                    continue
                for swap in (False, True) if fused and device.arch == 90 else (False,):
                    config = InputGradConfig(
                        block_m=block_m,
                        block_n=block_n,
                        block_k=block_k,
                        num_warps=warps,
                        num_stages=3,
                        loop_order=_order(problem, block_k),
                        swap=swap,
                    )
                    if not _spills(problem, config, device):
                        yield config
    yield LAST_RESORT


def _spills(problem: ConvProblem, config: InputGradConfig, device: DeviceSpec) -> bool:
    """Does ptxas stop at 96 or 128 registers, for one program more, and spill 8 to 24 bytes?

    So it did on sm_80 with 32 sums and 32 gradients per thread, scaled or after a silu, in half the layers compiled,
    and on sm_90 with 16 sums and 32 gradients after a relu. On sm_100 64 and 64 are too many for 255 registers.
    """
    threads = config.num_warps * device.warp_size
    figures = config.block_m * config.block_n / threads, config.block_m * config.block_k / threads
    if device.arch == 90:
        return config.swap and config.block_n < 64 and figures == (16, 32)
    too_many = (64, 64) if device.arch == 100 else (32, 32)
    return device.backend == "cuda" and derived_in_fp32(problem) and figures == too_many


def _order(problem: ConvProblem, block_k: int) -> str:
    whole = problem.k_per_group % block_k == 0 and problem.epilogue.shuffle == 1
    return "channels_inner" if whole else "flat"


def work(problem: ConvProblem, config: InputGradConfig, device: DeviceSpec) -> Work:
    """What the input gradient of `problem` with `config` does."""
    _, _, programs = tiles(problem, config)
    packs, columns, depth = packed(problem, config)
    classes = math.prod(problem.stride)
    mean_share = problem.taps / classes / math.prod(most_taps(problem))  # taps of the mean class over the largest's
    mean_trips = max(1.0, trips(problem, config) * mean_share)
    issued = programs * config.block_m * config.block_n * config.block_k * mean_trips
    useful = problem.batch * math.prod(problem.in_size) * packs * columns * depth * problem.taps / classes
    loop = GemmLoop(
        programs=programs,
        trips=mean_trips,
        blocks=(config.block_m, config.block_n, config.block_k),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        padding_efficiency=min(1.0, useful / issued) if issued else 1.0,
        scattered=config.loop_order == "flat",
    )
    return gemm_work(problem, loop, device)


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[InputGradConfig]:
    """The defaults with other stages and warps."""
    return variants(
        defaults(problem, device),
        num_stages=(2, 3, 4),
        num_warps=lambda config: sorted({config.num_warps, 4, 8}),
    )


MODEL = Model(defaults, _candidates, work, tile=lambda config: (config.block_m, config.block_n, config.pack))
