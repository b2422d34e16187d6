"""The implicit GEMM's configurations by prediction: every tile with plain knobs, then all knobs of the best tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from grouped_conv.autotune.model.implicit_gemm.forward import predict
from grouped_conv.autotune.model.implicit_gemm.forward_candidates import Axes, axes, why_redundant
from grouped_conv.autotune.model.implicit_gemm.forward_terms import register_pressure
from grouped_conv.autotune.model.shared.candidates import SPILLS, best_first
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

BEAM = 40
"""Tiles whose other knobs are compared; on AlexNet's layers the best of the whole space was always among them."""
SPILL_SLACK = 1.35
"""Expected register pressure up to which compiling is worth a try; see `implicit_gemm_terms.register_pressure`."""


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[ImplicitGemmConfig]:
    """Configurations by weighed prediction: every tile with plain knobs, then all knobs of the best tiles.

    What the model is indifferent to (walk order of the tiles, compiled-in trip counts) stays at its default.
    """
    if not problem.layout.is_uniform:
        return []
    known = axes(problem, device)
    tiles = _best(problem, device, _tiles(known))[:BEAM]
    variants = (
        replace(tile, loop_order=order, cache_a=cache, num_stages=stages)
        for tile in tiles
        for order, cache, stages in itertools.product(known.loop_order, known.cache_a, known.num_stages)
    )
    return _best(problem, device, variants)


def space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[ImplicitGemmConfig, str | None]]:
    """Every combination of the axes; each with the reason that leaves it out."""
    if not problem.layout.is_uniform:
        return
    kept, plain = set(ranked(problem, device)), ImplicitGemmConfig()
    for config in axes(problem, device).configs():
        reason = _why_left_out(problem, config, device)
        walks_alike = (config.swizzle_m, config.static_trips) == (plain.swizzle_m, plain.static_trips)
        if reason in (None, SPILLS) and not walks_alike:
            reason = "the model is indifferent to swizzle_m and static_trips"
        if reason is None and config not in kept:
            reason = f"its tile is not among the {BEAM} best with plain knobs"
        yield config, reason


def _why_left_out(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> str | None:
    reason = why_redundant(problem, config) or why_invalid(problem, config, device)
    if reason is None and register_pressure(problem, config, device) > SPILL_SLACK:
        return SPILLS
    return reason


def _best(problem: ConvProblem, device: DeviceSpec, configs: Iterable[ImplicitGemmConfig]) -> list[ImplicitGemmConfig]:
    return best_first(
        problem, device, ((config, _why_left_out(problem, config, device)) for config in configs), predict
    )


def _tiles(known: Axes) -> Iterator[ImplicitGemmConfig]:
    """Blocks, warps and splits with the shallowest pipeline and the loop order that takes any problem."""
    stages = min(stages for stages in known.num_stages if stages > 1)
    names = ("block_m", "block_n", "block_k", "num_warps", "split_k")
    for values in itertools.product(*(getattr(known, name) for name in names)):
        yield ImplicitGemmConfig(num_stages=stages, **dict(zip(names, values, strict=True)))
