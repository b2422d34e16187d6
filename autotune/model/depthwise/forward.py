"""The depthwise kernel in tuning: defaults, search space and cost model. Nothing here was measured.

Instructions are counted from the source's shape and agree with compiled code of sm_80 and sm_90 to a few per cent
(tests); bytes are those of the walk, each program's halo included, re-reads inside a program being L1's business.
`streaming` turns both into a predicted time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from grouped_conv.autotune.model.shared.activations import APPLIED
from grouped_conv.autotune.model.shared.machine import dram_us, scalar_clocks
from grouped_conv.autotune.model.shared.model import Model, variants
from grouped_conv.autotune.model.shared.streaming import Work
from grouped_conv.kernels.depthwise.forward_rules import (
    DepthwiseConfig,
    Walk,
    axes_of,
    halo_bytes,
    padding_efficiency,
    per_thread,
    straight_columns,
    walk_of,
)
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

FIXED = 110
"""Instructions of a thread before its first step: program and lane indices, addresses of weights and bias."""
STEP = 45
"""Instructions of a step besides its sums: the division that finds the image, addresses, bounds, the first zeros."""
LOOP = 16
"""Instructions of a loop trip besides its sums."""
AMD = 1.25
"""Instructions of gfx942 over those counted here, in compiled defaults of MobileNetV2 and ConvNeXt-T (1.1 to 1.4)."""
UNEVEN = 4
"""Instructions of an input load besides, where the last block of channels is cut: a predicate and an address each."""
STORE = 3
"""Instructions of a store's address and predicate."""
UNROLLED_TAPS = 25
"""Taps up to which an unrolled kernel is a default: 7x7 unrolled is 8 % shorter than its loop, but takes all registers
of sm_80 and four times as long to compile."""


def thread_instructions(problem: ConvProblem, config: DepthwiseConfig, values: float) -> tuple[float, float]:
    """(instructions one thread issues, instructions of its code), `values` channels to a thread, all bounds checked."""
    across, along = axes_of(problem, config)
    x, w = _load_costs(problem, config, values)
    sums = config.tile_h * config.tile_w * config.multipliers
    if config.row_loop:
        chunk = straight_columns(problem, config)
        rest = along.kernel % chunk
        whole, last = (
            LOOP + taps * sums * values + replace(along, kernel=taps).positions(config.tile_w) * config.tile_h * x
            + taps * config.multipliers * w if taps else 0.0
            for taps in (chunk, rest)
        )  # fmt: skip
        code, body = whole + last, across.kernel * (along.kernel // chunk * whole + last)
    else:
        columns = across.positions(config.tile_h) * along.positions(config.tile_w)
        code = problem.taps * sums * values + columns * x
        code += 0 if config.resident else problem.taps * config.multipliers * w
        body = code
    fixed = FIXED + (problem.taps * config.multipliers * w if config.resident else 0)
    finish = STEP + sums * (_finish(problem, values) + STORE)
    return fixed + config.steps * (finish + body), fixed + finish + code


def _load_costs(problem: ConvProblem, config: DepthwiseConfig, values: float) -> tuple[float, float]:
    """Instructions of one thread for one position of its input and for one tap of its weights, in fp32 afterwards."""
    half, width = problem.item_size == 2, values * problem.item_size
    loads = max(1.0, width / _access_bytes(problem))
    x = loads + (values if half else 0) + math.ceil(width / 8) + 1 + (0 if config.static_channels else 1)
    x += UNEVEN * loads if problem.in_channels % config.block_c else 0
    w = max(1.0, values / 4) if config.pack_weight else values * (2 if half else 1)
    return x, w


def _access_bytes(problem: ConvProblem) -> int:
    """Bytes of one load: what the channels of a pixel are divisible by, 16 at most."""
    return math.gcd(16, problem.in_channels * problem.item_size)


def _finish(problem: ConvProblem, values: float) -> float:
    """Instructions of one output pixel of a thread after its sums."""
    epilogue = problem.epilogue
    activation = APPLIED.of(epilogue.activation)
    if epilogue.activation == "relu" and problem.dtype != "float16":
        activation = 1
    each = activation + epilogue.scale + (2 if epilogue.residual else 0)
    half = problem.item_size == 2
    vector = problem.output_channels_last and epilogue.shuffle == 1 and problem.k_per_group in (1, 2, 4)
    stores = values * problem.item_size / _access_bytes(problem) if vector else 2 * values
    stored = 1 + epilogue.save_preactivation
    return values * each + stored * (stores + (values / 2 if half else 0))


def work(problem: ConvProblem, config: DepthwiseConfig, device: DeviceSpec) -> Work:
    """What the call of `problem` with `config` does, the pass that packs the weight included as if it always ran.

    Compiled code corrects the instructions by its own length over the estimate's, but for kernels with an interior,
    whose code is twice as long as what a thread issues.
    """
    walk = walk_of(problem, config)
    values = max(per_thread(config, device), 1.0)
    amd = AMD if device.backend == "hip" else 1.0
    issued, code = (amd * count for count in thread_instructions(problem, config, values))
    pixels = config.tile_h * config.tile_w * config.block_h * config.block_w * config.steps
    return Work(
        programs=walk.programs,
        num_warps=config.num_warps,
        instructions=issued,
        code=0.0 if config.interior else code,
        tensor_clocks=scalar_clocks(pixels * config.block_c * config.multipliers * problem.taps, device),
        l2_bytes=_l2_bytes(problem, config, walk),
        dram_bytes=problem.min_bytes,
        registers=estimated_registers(problem, config, values),
        padding_efficiency=padding_efficiency(problem, config),
        passes_us=dram_us(packed_bytes(problem, config), device),
        passes=int(config.pack_weight),
    )


def packed_bytes(problem: ConvProblem, config: DepthwiseConfig | DepthwiseInputGradConfig) -> int:
    """Bytes that the pass that packs the weight moves; 0 without it."""
    return math.prod(problem.weight_shape) * (problem.item_size + 4) if config.pack_weight else 0


def estimated_registers(problem: ConvProblem, config: DepthwiseConfig, values: float) -> int:
    """Registers per thread: sums, the weights in use (all taps, or a window of one row in a loop), and 40 more."""
    sums = config.tile_h * config.tile_w * config.multipliers * values
    _, along = axes_of(problem, config)
    taps = min(along.kernel, config.tile_w) if config.row_loop else problem.taps
    return int(min(255, 40 + sums + taps * config.multipliers * values))


def _l2_bytes(problem: ConvProblem, config: DepthwiseConfig, walk: Walk) -> float:
    """Halos once per program, each program's weights once, everything else once."""
    weights = problem.taps * config.block_c * config.multipliers * (4 if config.pack_weight else problem.item_size)
    others = problem.min_bytes - math.prod(problem.input_shape) * problem.item_size
    return halo_bytes(problem, config) + walk.programs * weights + others


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[DepthwiseConfig]:
    """The configurations that the heuristic compares: tiles and blocks that suit the image, weights packed or not."""
    if problem.c_per_group != 1 or not problem.batch:
        return
    multipliers = _multipliers(problem)[0]
    for strip in _strips(problem):
        chunk = _chunk(problem, device, strip)
        for tile_h, tile_w, row_loop in _tiles(problem, device, strip, multipliers):
            for block_c, block_h, block_w in _blocks(problem, device, strip, tile_h, tile_w):
                for pack_weight in (False, True):
                    yield DepthwiseConfig(
                        block_c=block_c,
                        tile_h=tile_h,
                        tile_w=tile_w,
                        block_h=block_h,
                        block_w=block_w,
                        multipliers=multipliers,
                        strip=strip,
                        pack_weight=pack_weight,
                        row_loop=row_loop,
                        chunk=chunk if row_loop else 0,
                    )


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[DepthwiseConfig]:
    """The defaults with every other knob that changes their code or their walk."""
    for base, warps in itertools.product(defaults(problem, device), (2, 4, 8)):
        block_h = base.block_h * warps / base.num_warps
        if block_h < 1:
            continue  # no such configuration
        start = replace(base, num_warps=warps, block_h=int(block_h))
        for resident, interior in ((False, False), (True, False), (False, True)):
            if not (resident and base.row_loop):
                kinds = [replace(start, resident=resident, interior=interior)]
                yield from variants(kinds, steps=(1, 2, 4), multipliers=_multipliers(problem))


def _why_not(problem: ConvProblem, config: DepthwiseConfig, device: DeviceSpec) -> str | None:
    return "resident weights of one step are read once anyway" if config.resident and config.steps == 1 else None


def _chunk(problem: ConvProblem, device: DeviceSpec, strip: str) -> int:
    """Columns in straight-line code: all, or 8 of many (31: gfx942 spilled 2 kB per thread, sm_80 some bytes)."""
    _, along = axes_of(problem, DepthwiseConfig(strip=strip))
    return 8 if along.kernel > (9 if device.backend == "hip" else 16) else 0


def _multipliers(problem: ConvProblem) -> list[int]:
    """Output channels per input channel that a program may compute, the preferred first: all of few, a part of many."""
    multiplier = problem.k_per_group
    fitting = [part for part in (4, 2, 3, 1) if multiplier % part == 0 and part <= multiplier]
    return fitting or [1]


def _strips(problem: ConvProblem) -> tuple[str, ...]:
    """Along the width, and along the height where the image or the kernel is taller than wide."""
    taller = problem.out_size[0] > problem.out_size[1] or problem.kernel_size[0] > problem.kernel_size[1]
    return ("w", "h") if taller else ("w",)


def _tiles(problem: ConvProblem, device: DeviceSpec, strip: str, multipliers: int) -> Iterator[tuple[int, int, bool]]:
    """(tile_h, tile_w, row_loop): large kernels loop over their rows; AMD's compiler spills 5x5 unrolled."""
    across, along = axes_of(problem, DepthwiseConfig(strip=strip))
    unrolled = 9 if device.backend == "hip" else UNROLLED_TAPS
    most = 8 if _access_bytes(problem) >= 8 else 4  # an address for every channel of an input takes registers
    if problem.taps <= unrolled or (across.kernel == 1 and device.backend != "hip"):
        for tile_h, tile_w in ((2, 4), (1, 8), (1, 7), (2, 2), (1, 4), (1, 2), (1, 1)):
            if multipliers * tile_h * tile_w <= most and (tile_h == 1 or across.out > 1) and tile_w < 2 * along.out:
                yield tile_h, tile_w, False
    if problem.taps > 9 and (across.kernel > 1 or device.backend == "hip"):
        for tile_w in (8, 7, 4, 2, 1):
            if multipliers * tile_w <= most and tile_w < 2 * along.out:
                yield 1, tile_w, True


def _blocks(
    problem: ConvProblem, device: DeviceSpec, strip: str, tile_h: int, tile_w: int
) -> Iterator[tuple[int, int, int]]:
    """(block_c, block_h, block_w): 4 warps whose threads load 16 bytes each, their tiles in a square or in a row."""
    _, along = axes_of(problem, DepthwiseConfig(strip=strip))
    block_c = channel_block(problem)
    tiles = 4 * device.warp_size * 16 // problem.item_size // block_c
    tiles_w = math.ceil(along.out / tile_w)
    for block_w in _powers(1, tiles):
        if block_w < 2 * tiles_w and (block_w * block_w >= tiles // 4 or block_w >= tiles_w / 2):
            yield block_c, tiles // block_w, block_w


def channel_block(problem: ConvProblem) -> int:
    """Channels per program: 64 (a cache line of 16-bit values), or less where that wastes an eighth more."""
    sizes = (64, 32, 16)
    padded = {size: math.ceil(problem.in_channels / size) * size for size in sizes}
    return next(size for size in sizes if padded[size] <= 1.125 * min(padded.values()))


def _powers(first: int, last: int) -> Iterable[int]:
    return itertools.takewhile(lambda power: power <= last, (first << shift for shift in range(20)))


MODEL = Model(
    defaults,
    _candidates,
    work,
    why_not=_why_not,
    uses_tensor_cores=False,
    tile=lambda config: (config.tile_h, config.tile_w, config.block_c),
)
