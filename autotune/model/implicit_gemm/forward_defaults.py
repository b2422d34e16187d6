"""The implicit GEMM without searching: tiles known to compile well, with loop orders and depths that suit a problem."""

from __future__ import annotations

from collections.abc import Iterator

from grouped_conv.autotune.model.implicit_gemm.forward_terms import register_pressure
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

TILES = (
    (256, 128, 8),
    (256, 64, 4),
    (256, 64, 8),
    (128, 256, 8),
    (128, 128, 4),
    (128, 128, 8),
    (128, 64, 4),
    (64, 128, 4),
    (64, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (32, 64, 4),
    (32, 32, 4),
    (128, 16, 4),
    (32, 16, 4),
)
"""(block_m, block_n, warps) worth comparing; at most 128 sums per thread."""
DEPTHS = (64, 32, 16)
LITTLE_WASTE = 0.9
LAST_RESORT = ImplicitGemmConfig(block_m=32, block_n=16, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[ImplicitGemmConfig]:
    """The configurations that the heuristic compares, the last resort last."""
    if problem.batch and problem.layout.is_uniform:
        yield from _tiles(problem, device)
    yield LAST_RESORT


def _tiles(problem: ConvProblem, device: DeviceSpec) -> Iterator[ImplicitGemmConfig]:
    """Tiles no larger than the problem, with the loop orders and depths that suit its channels."""
    groups, m, n, k = problem.gemm
    for block_m, block_n, warps in TILES:
        if (block_m > 32 and block_m >= 2 * m) or (block_n > 16 and block_n >= 2 * n):
            continue
        depth = _depth(problem, device, block_m, block_n, warps)
        if not depth:
            continue
        tiles = -(-m // block_m) * -(-n // block_n) * groups
        for split in _splits(tiles, -(-k // depth), device):
            for order, cache in _orders(problem, depth, device):
                for stages in (3, 2):
                    yield ImplicitGemmConfig(
                        block_m=block_m,
                        block_n=block_n,
                        block_k=depth,
                        num_warps=warps,
                        num_stages=stages,
                        split_k=split,
                        loop_order=order,
                        cache_a=cache,
                    )


def _depth(problem: ConvProblem, device: DeviceSpec, block_m: int, block_n: int, warps: int) -> int:
    """The deepest step of the reduction that is not expected to spill and wastes little of the last one; 0 for none."""
    depth_total = problem.gemm[3]
    fitting = []
    for depth in DEPTHS:
        config = ImplicitGemmConfig(block_m=block_m, block_n=block_n, block_k=depth, num_warps=warps)
        if register_pressure(problem, config, device) <= 1:
            fitting.append(depth)
    thrifty = [depth for depth in fitting if depth_total >= LITTLE_WASTE * depth * -(-depth_total // depth)]
    return next(iter(thrifty), fitting[-1] if fitting else 0)


def _orders(problem: ConvProblem, depth: int, device: DeviceSpec) -> tuple[tuple[str, str], ...]:
    """(loop order, cache policy) pairs worth comparing; whole channel blocks need no index arithmetic in the loop."""
    cached = ".ca" if device.backend == "cuda" else ""
    if problem.input_shuffle > 1:
        return (("flat", cached),)
    if problem.taps == 1:
        return (("channels_inner" if problem.c_per_group % depth == 0 else "flat", ""),)
    if problem.c_per_group % depth:
        return (("flat", ""),) if cached == "" else (("flat", ""), ("flat", cached))
    return (("channels_inner", ""), ("taps_inner", cached))


def _splits(tiles: int, blocks: int, device: DeviceSpec) -> tuple[int, ...]:
    """1, and where tiles leave half of the device idle, the split that fills it once, at least two blocks a program."""
    fill = min(device.sm_count // tiles, blocks // 2, 32)
    return (1, fill) if fill > 1 else (1,)
