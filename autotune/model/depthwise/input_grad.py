"""The depthwise input gradient's cost model and defaults: a roofline over `streaming`, nothing in it measured.

Instructions are counted from the source's shape: products, loads with their conversions, and what surrounds them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.candidates import best_first, judged
from grouped_conv.autotune.model.shared.machine import dram_us
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_stream
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
DERIVATIVE = {"none": 0, "relu": 3, "relu6": 5, "leaky_relu": 4, "hardswish": 10}
"""Instructions per loaded gradient for the activation's derivative, its operand's load included; others `SLOW`."""
SLOW = 25
UNROLLED_TAPS = 9


def predict(
    problem: ConvProblem, config: DepthwiseInputGradConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`; `resources` are figures of the compiled kernel."""
    walk = walk_of(problem, config)
    values = max(per_thread(config, device), 1.0)
    half = problem.item_size == 2
    load = LOAD + values * (half + DERIVATIVE.get(problem.epilogue.activation, SLOW))
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
    work = Work(
        programs=walk.programs,
        num_warps=config.num_warps,
        instructions=issued,
        tensor_clocks=issued_products(config, products, device),
        l2_bytes=problem.min_bytes + gradients * max(0.0, min(halo, 4.0) - 1) * 0.25,
        dram_bytes=problem.min_bytes + (gradients if problem.epilogue.activation != "none" else 0),
        registers=resources.registers if resources else int(min(255, 70 + values * (pixels + 5))),
        padding_efficiency=padding_efficiency(problem, config),
    )
    moved = math.prod(problem.weight_shape) * (problem.item_size + 4) if config.pack_weight else 0
    return predict_stream(problem, device, work, (dram_us(moved, device), int(config.pack_weight)))


def _places(problem: ConvProblem, config: DepthwiseInputGradConfig, axis: int) -> set[int]:
    """Output rows (or columns) of a tile's window that are read."""
    tile = (config.tile_h, config.tile_w)[axis]
    return places(
        tile, problem.kernel_size[axis], problem.stride[axis], problem.padding[2 * axis], problem.dilation[axis]
    )


def issued_products(config: DepthwiseInputGradConfig, products: float, device: DeviceSpec) -> float:
    """Clocks of one multiprocessor's fp32 pipe for the products of one program."""
    program = config.block_h * config.block_w * config.block_c * products
    return program / (device.fp32_flops / (2 * device.sm_count * device.clock_hz))


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[DepthwiseInputGradConfig]:
    """A few tiles, unrolled for small kernels and looped for large ones, that suit the image."""
    if not problem.layout.is_uniform or problem.c_per_group != 1 or not problem.batch:
        return
    multipliers = next(part for part in (4, 2, 3, 1) if problem.k_per_group % part == 0)
    stride_h, stride_w = problem.stride
    wide = problem.kernel_size[1] > (9 if device.backend == "hip" else 16)
    aligned = math.lcm(8, stride_w // math.gcd(stride_w, problem.dilation[1]))
    chunk = aligned if wide and aligned < problem.kernel_size[1] else 0
    sums = 8 if problem.epilogue.activation == "none" and problem.in_channels % 8 == 0 else 4
    block_c = _channel_block(problem)
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


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[DepthwiseInputGradConfig]:
    """What of the space is worth compiling, best first by the model."""
    return best_first(problem, device, space(problem, device), predict)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[DepthwiseInputGradConfig, str | None]]:
    """The defaults; each with the reason that leaves it out."""

    return judged(problem, device, defaults(problem, device))


def _channel_block(problem: ConvProblem) -> int:
    """Channels per program: 64, or less where that wastes an eighth more."""
    padded = {size: math.ceil(problem.in_channels / size) * size for size in (64, 32, 16)}
    return next(size for size in padded if padded[size] <= 1.125 * min(padded.values()))
