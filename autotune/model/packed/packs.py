"""What the models of the packed kernels share: widths of packs, and the tiles of forward pass and input gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from grouped_conv.autotune.model.shared.model import SPILLS, variants
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MOST_CHANNELS = 32
"""Channels per group above which the tiles of the implicit GEMM's kernels are full without packing."""
WIDTHS = (16, 32, 64)
"""Channels of a pack that a search tries; the defaults leave out the last."""
MOST_TILES = 32
"""Tiles of one program at most."""

Config = TypeVar("Config", PackedGroupsConfig, PackedInputGradConfig)
Fits = Callable[[ConvProblem, Any, DeviceSpec], bool]


def is_thin(problem: ConvProblem, most: int) -> bool:
    """Do groups have at most so many channels?

    One input channel is left to the depthwise kernels: of 16 products here, 15 would be zero.
    """
    return 1 < problem.c_per_group <= most and problem.k_per_group <= most


def packs(problem: ConvProblem, widths: Iterable[int]) -> list[int]:
    """For each width the largest power of two of groups that fits: powers of two keep runs aligned."""
    widest, most = max(problem.c_per_group, problem.k_per_group), 1 << (problem.groups - 1).bit_length()
    return sorted({min(1 << (max(1, width // widest).bit_length() - 1), most) for width in widths})


def spilling(fits: Fits) -> Callable[[ConvProblem, Any, DeviceSpec], str | None]:
    """The reason to leave a configuration out that is expected not to fit the registers."""
    return lambda problem, config, device: None if fits(problem, config, device) else SPILLS


def runs(problem: ConvProblem, config: Any, device: DeviceSpec, fits: Fits) -> bool:
    """Is a configuration valid, and expected to fit the registers?"""
    return why_invalid(problem, config, device) is None and fits(problem, config, device)


def tile_defaults(
    problem: ConvProblem, device: DeviceSpec, strips: tuple[int, ...], make: Callable[..., Config], fits: Fits
) -> Iterator[Config]:
    """For packs of 16 and 32 channels every strip with loads one row ahead, or none where that does not fit.

    Args:
        make: (problem, device, pack, strip, rows ahead) to the configuration with the tile that compiled best.
    """
    for pack, strip in itertools.product(packs(problem, WIDTHS[:2]), strips):
        configs = (make(problem, device, pack, strip, ahead) for ahead in (1, 0))
        yield from itertools.islice((config for config in configs if runs(problem, config, device, fits)), 1)


def tile_candidates(
    problem: ConvProblem,
    device: DeviceSpec,
    strips: tuple[int, ...],
    make: Callable[..., Config],
    tiles_each: Callable[[ConvProblem, DeviceSpec, Config], int],
) -> Iterator[Config]:
    """Widths, strips, loads ahead, warps, tile heights, tiles per program.

    Args:
        make: as of `tile_defaults`.
        tiles_each: (problem, device, config) to the tiles per program that fill the device once.
    """
    starts = (make(problem, device, *knobs) for knobs in itertools.product(packs(problem, WIDTHS), strips, (0, 1, 2)))

    def tiles(config: Config) -> list[int]:
        once = tiles_each(problem, device, config)
        return [max(1, round(once * factor)) for factor in (0.5, 1, 2)]

    return variants(starts, num_warps=(1, 2, 4), block_m=(16, 32, 64), tiles_per_program=tiles)
