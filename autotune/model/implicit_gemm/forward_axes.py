"""The search space of the implicit GEMM: axes as data, and the candidates that survive the one validity predicate."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

SPACE_VERSION = 2
"""Raised by hand whenever axes or pruning change; tells which space a stored search covered."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The values each knob may take."""

    block_m: tuple[int, ...]
    block_n: tuple[int, ...]
    block_k: tuple[int, ...]
    num_warps: tuple[int, ...]
    num_stages: tuple[int, ...]
    loop_order: tuple[str, ...]
    cache_a: tuple[str, ...]
    split_k: tuple[int, ...]
    swizzle_m: tuple[int, ...]
    static_trips: tuple[bool, ...]

    def configs(self) -> Iterator[ImplicitGemmConfig]:
        """Every combination, valid or not, in a fixed order."""
        names = list(self.__slots__)
        for values in itertools.product(*(getattr(self, name) for name in names)):
            yield ImplicitGemmConfig(**dict(zip(names, values, strict=True)))


@dataclass(frozen=True, slots=True)
class Space:
    """Candidates for one problem on one device, and how many were left out for which reason."""

    configs: tuple[ImplicitGemmConfig, ...]
    rejected: Counter[str] = field(default_factory=Counter)


def axes(problem: ConvProblem, device: DeviceSpec) -> Axes:
    """The axes for `problem` on `device`: no block longer than the dimension it covers, rounded up to a power of two.

    Splits are offered only where whole tiles cannot fill the device twice; AMD's L1 is on by default, so the input's
    cache policy is a knob on NVIDIA only; a pipeline deeper than 3 does not fit AMD's shared memory.
    """
    _, m, n, k = problem.gemm
    cuda = device.backend == "cuda"
    one_tap = problem.taps == 1
    tiles = -(-m // 64) * -(-n // 64) * problem.groups
    splits = (
        [1]
        if tiles >= 2 * device.sm_count
        else [s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if s * 16 <= k or s == 1]
    )
    return Axes(
        block_m=_up_to(m, (32, 64, 128, 256)),
        block_n=_up_to(n, (16, 32, 64, 128, 256)),
        block_k=_up_to(k, (16, 32, 64, 128)),
        num_warps=(2, 4, 8),
        num_stages=(2, 3, 4, 5) if cuda else (1, 2, 3),
        loop_order=("flat", "channels_inner") if one_tap else ("flat", "channels_inner", "taps_inner"),
        cache_a=("", ".ca") if cuda and not one_tap else ("",),
        split_k=tuple(splits),
        swizzle_m=(1, 8) if n > 64 else (1,),
        static_trips=(True, False),
    )


def candidates(problem: ConvProblem, device: DeviceSpec) -> Space:
    """All configurations worth compiling, in a fixed order, and how many were left out for which reason."""
    kept = []
    rejected: Counter[str] = Counter()
    for config in axes(problem, device).configs():
        reason = why_redundant(problem, config) or why_invalid(problem, config, device)
        if reason is None:
            kept.append(config)
        else:
            rejected[re.sub(r"\d+", "#", reason)] += 1
    return Space(tuple(kept), rejected)


def _up_to(size: int, values: tuple[int, ...]) -> tuple[int, ...]:
    """The values below `size` and the first that covers it."""
    return tuple(value for i, value in enumerate(values) if i == 0 or values[i - 1] < size)


def why_redundant(problem: ConvProblem, config: ImplicitGemmConfig) -> str | None:
    """Why another candidate does the same, or plainly better."""
    if config.loop_order == "taps_inner" and problem.c_per_group == config.block_k:
        return "one channel block: taps_inner walks as channels_inner does"
    area = config.block_m * config.block_n
    if config.num_warps == 2 and area > 64 * 64:
        return "2 warps are for small tiles"
    if config.num_warps == 8 and area < 64 * 64:
        return "8 warps are for large tiles"
    if config.swizzle_m > 1 and problem.k_per_group <= config.block_n:
        return "one channel tile: nothing to swizzle"
    return None
