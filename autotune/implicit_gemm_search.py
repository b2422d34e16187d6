"""The implicit GEMM's configurations by prediction: every tile with plain knobs, then all knobs of the best tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from grouped_conv.autotune.implicit_gemm_cost import predict
from grouped_conv.autotune.implicit_gemm_terms import register_pressure
from grouped_conv.autotune.records import canonical
from grouped_conv.autotune.space import Axes, axes, why_redundant
from grouped_conv.kernels.config import ImplicitGemmConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.validity import why_invalid

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
    space = axes(problem, device)
    tiles = _sorted(problem, device, _usable(problem, device, _tiles(space)))[:BEAM]
    variants = (
        replace(tile, loop_order=order, cache_a=cache, num_stages=stages)
        for tile in tiles
        for order, cache, stages in itertools.product(space.loop_order, space.cache_a, space.num_stages)
    )
    return _sorted(problem, device, _usable(problem, device, variants))


def _tiles(space: Axes) -> Iterator[ImplicitGemmConfig]:
    """Blocks, warps and splits with the shallowest pipeline and the loop order that takes any problem."""
    stages = min(stages for stages in space.num_stages if stages > 1)
    names = ("block_m", "block_n", "block_k", "num_warps", "split_k")
    for values in itertools.product(*(getattr(space, name) for name in names)):
        yield ImplicitGemmConfig(num_stages=stages, **dict(zip(names, values, strict=True)))


def _usable(
    problem: ConvProblem, device: DeviceSpec, configs: Iterable[ImplicitGemmConfig]
) -> Iterator[ImplicitGemmConfig]:
    for config in configs:
        if (
            why_redundant(problem, config) is None
            and why_invalid(problem, config, device) is None
            and register_pressure(problem, config, device) <= SPILL_SLACK
        ):
            yield config


def _sorted(
    problem: ConvProblem, device: DeviceSpec, configs: Iterable[ImplicitGemmConfig]
) -> list[ImplicitGemmConfig]:
    scored = [(predict(problem, config, device).weighed_us, canonical(config.to_json()), config) for config in configs]
    return [config for _, _, config in sorted(scored, key=lambda entry: entry[:2])]
