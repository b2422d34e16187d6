"""The implicit GEMM in tuning: its row, and its search, which looks at all knobs of the best tiles only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.implicit_gemm.forward_axes import axes, why_redundant
from grouped_conv.autotune.model.implicit_gemm.forward_cost import predict
from grouped_conv.autotune.model.implicit_gemm.forward_defaults import defaults
from grouped_conv.autotune.model.implicit_gemm.forward_terms import register_pressure
from grouped_conv.autotune.model.shared.model import SPILLS, Model, best_first
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig, why_invalid, why_not_on
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

BEAM = 40
"""Tiles whose other knobs are compared; on AlexNet's layers the best of the whole space was always among them."""
SPILL_SLACK = 1.35
"""Expected register pressure up to which compiling is worth a try; see `forward_terms.register_pressure`."""
PLAIN = ImplicitGemmConfig()


def ranked(problem: ConvProblem, device: DeviceSpec) -> list[ImplicitGemmConfig]:
    """Configurations by weighed prediction: every tile with plain knobs, then all knobs of the best tiles.

    Knobs that make no difference to the model (walk order of the tiles, compiled-in trip counts) keep their defaults.
    """
    known = axes(problem, device)
    # Blocks, warps and splits with the shallowest pipeline and the loop order that takes any problem.
    shallow = min(stages for stages in known.num_stages if stages > 1)
    names = ("block_m", "block_n", "block_k", "num_warps", "split_k")
    tiles = (
        ImplicitGemmConfig(num_stages=shallow, **dict(zip(names, values, strict=True)))
        for values in itertools.product(*(getattr(known, name) for name in names))
    )
    variants = (
        replace(tile, loop_order=order, cache_a=cache, num_stages=stages)
        for tile in _best(problem, device, tiles)[:BEAM]
        for order, cache, stages in itertools.product(known.loop_order, known.cache_a, known.num_stages)
    )
    return _best(problem, device, variants)


def _best(problem: ConvProblem, device: DeviceSpec, configs: Iterator[ImplicitGemmConfig]) -> list[ImplicitGemmConfig]:
    kept = (config for config in configs if _why_left_out(problem, config, device) is None)
    return best_first(problem, device, kept, predict)


def _why_left_out(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> str | None:
    """The first of: redundant, invalid, expected to spill."""
    reason = why_redundant(problem, config) or why_invalid(problem, config) or why_not_on(problem, config, device)
    if reason is None and register_pressure(problem, config, device) > SPILL_SLACK:
        return SPILLS
    return reason


def _space(problem: ConvProblem, device: DeviceSpec) -> Iterator[tuple[ImplicitGemmConfig, str | None]]:
    """Every combination of the axes."""
    kept = set(ranked(problem, device))
    for config in axes(problem, device).configs():
        reason = _why_left_out(problem, config, device)
        walks_alike = (config.swizzle_m, config.static_trips) == (PLAIN.swizzle_m, PLAIN.static_trips)
        if reason in (None, SPILLS) and not walks_alike:
            reason = "the model is indifferent to swizzle_m and static_trips"
        if reason is None and config not in kept:
            reason = f"its tile is not among the {BEAM} best with plain knobs"
        yield config, reason


MODEL = Model(defaults, timed=predict, beam=(ranked, _space), tile=lambda config: (config.block_m, config.block_n))
