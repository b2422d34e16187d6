"""The depthwise input gradient in tuning: defaults and cost model. Nothing here was measured.

Instructions are counted from the source's shape: products, loads with their conversions, and what surrounds them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from grouped_conv.autotune.model.depthwise.forward import channel_block, packed_bytes
from grouped_conv.autotune.model.shared.activations import DERIVED_IN_THREADS
from grouped_conv.autotune.model.shared.gemm_gradient import known_bytes
from grouped_conv.autotune.model.shared.machine import dram_us, scalar_clocks
from grouped_conv.autotune.model.shared.model import Model
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.depthwise.input_grad_rules import (
    DepthwiseInputGradConfig,
    padding_efficiency,
    per_thread,
    places,
    walk_of,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

FIXED = 150
"""Instructions of a thread besides its products, loads and stores; assumed as forward."""
LOAD = 4
"""Instructions of a load besides conversions: itself, a predicate, an address, cleared registers."""
UNROLLED_TAPS = 9


def work(problem: ConvProblem, config: DepthwiseInputGradConfig, device: DeviceSpec) -> Work:
    """What the input gradient of `problem` with `config` does, the pass that packs the weight included."""
    walk = walk_of(problem, config)
    values = max(per_thread(config, device), 1.0)
    half = problem.item_size == 2
    load = LOAD + values * (half + DERIVED_IN_THREADS.of(problem.epilogue.activation))
    pixels = config.tile_h * config.tile_w
    along = len(_places(problem, config, 1))
    if config.row_loop:  # a class has a row in `stride` of the kernel's; each row of the tile loads for itself
        across, columns = problem.kernel_size[0] / problem.stride[0] * config.tile_h, along
    else:
        across, columns = float(len(_places(problem, config, 0))), along
    products = pixels * problem.taps / math.prod(problem.stride) * problem.k_per_group
    weights = problem.taps * problem.k_per_group * (values / 4 if config.pack_weight else 2 * values)
    issued = FIXED + values * products + across * columns * problem.k_per_group * load + weights + pixels * LOAD * 2
    gradients = math.prod(problem.output_shape) * problem.item_size
    halo = across * columns / max(1.0, pixels / math.prod(problem.stride))
    return Work(
        programs=walk.programs,
        num_warps=config.num_warps,
        instructions=issued,
        tensor_clocks=scalar_clocks(config.block_h * config.block_w * config.block_c * products, device),
        l2_bytes=problem.min_bytes + gradients * max(0.0, min(halo, 4.0) - 1) * 0.25,
        dram_bytes=problem.min_bytes + known_bytes(problem),
        registers=int(min(255, 70 + values * (pixels + 5))),
        padding_efficiency=padding_efficiency(problem, config),
        passes_us=dram_us(packed_bytes(problem, config), device),
        passes=int(config.pack_weight),
    )


def _places(problem: ConvProblem, config: DepthwiseInputGradConfig, axis: int) -> set[int]:
    """Output rows (or columns) of a tile's window that are read."""
    tile = (config.tile_h, config.tile_w)[axis]
    return places(
        tile, problem.kernel_size[axis], problem.stride[axis], problem.padding[2 * axis], problem.dilation[axis]
    )


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[DepthwiseInputGradConfig]:
    """A few tiles, unrolled for small kernels and looped for large ones, that suit the image."""
    if problem.c_per_group != 1 or not problem.batch:
        return
    multipliers = next(part for part in (4, 2, 3, 1) if problem.k_per_group % part == 0)
    stride_h, stride_w = problem.stride
    wide = problem.kernel_size[1] > (9 if device.backend == "hip" else 16)
    aligned = math.lcm(8, stride_w // math.gcd(stride_w, problem.dilation[1]))
    chunk = aligned if wide and aligned < problem.kernel_size[1] else 0
    sums = 8 if problem.epilogue.activation == "none" and problem.in_channels % 8 == 0 else 4
    block_c = channel_block(problem)
    looped = problem.taps > UNROLLED_TAPS * math.prod(problem.stride)
    for (high, columns), packed in itertools.product(((2, 4), (1, 8), (1, 7), (2, 2), (1, 4), (1, 2), (1, 1)), (0, 1)):
        tile_h = high if looped else math.ceil(high / stride_h) * stride_h
        tile_w = math.ceil(columns / stride_w) * stride_w
        if looped and high > 1:
            continue
        values = 16 // problem.item_size
        while values > 1 and (tile_h * tile_w * values > sums * 8 and tile_h * tile_w > sums):
            values //= 2
        lanes = 4 * device.warp_size * values // block_c
        if lanes < 1:
            continue
        block_w = 1
        while block_w < lanes and block_w * tile_w < problem.in_size[1]:
            block_w *= 2
        yield DepthwiseInputGradConfig(
            block_c=block_c,
            tile_h=tile_h,
            tile_w=tile_w,
            block_h=lanes // block_w,
            block_w=block_w,
            multipliers=multipliers,
            pack_weight=bool(packed),
            row_loop=looped,
            chunk=chunk if looped else 0,
        )


MODEL = Model(defaults, work=work, uses_tensor_cores=False)
