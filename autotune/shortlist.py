"""Which configurations are worth compiling, by the cost model: first tiles, then the knobs of the best tiles."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from grouped_conv.autotune.cost import MODEL_VERSION, predict
from grouped_conv.autotune.cost_terms import register_pressure
from grouped_conv.autotune.heuristic import choose
from grouped_conv.autotune.records import canonical, problem_key
from grouped_conv.autotune.space import SPACE_VERSION, Axes, axes, why_redundant
from grouped_conv.autotune.store import Store
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.config import ImplicitGemmConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.validity import why_invalid

BEAM = 40
"""Tiles whose other knobs are compared; on AlexNet's layers the best of the whole space was always among them."""
PER_TILE = 2
"""Shortlisted configurations that may share block_m and block_n; one good tile must not crowd out the others."""
SPILL_SLACK = 1.35
"""Expected register pressure up to which compiling is worth a try; see `cost_terms.register_pressure`."""


def shortlist(problem: ConvProblem, device: DeviceSpec, store: Store, limit: int) -> list[ImplicitGemmConfig]:
    """At most `limit` configurations: the heuristic's, then the best by the model, few of each tile.

    Remembered in the store for this space, this model and this kernel ABI.
    """
    key = canonical([problem_key(problem), device.to_json(), limit, SPACE_VERSION, MODEL_VERSION, ABI_VERSION])
    recalled = store.recall_search(key)
    if recalled is not None:
        parsed = map(ImplicitGemmConfig.from_json, recalled)
        return [config for config in parsed if isinstance(config, ImplicitGemmConfig)]
    chosen = _various([choose(problem, device), *_ranked(problem, device)], limit)
    store.remember_search(key, [config.to_json() for config in chosen])
    return chosen


def _various(configs: Iterable[ImplicitGemmConfig], limit: int) -> list[ImplicitGemmConfig]:
    """The first configurations, but only `PER_TILE` of a tile, and one of those that differ in the pipeline alone."""
    tiles: Counter[tuple[int, int]] = Counter()
    shapes: set[tuple[Any, ...]] = set()
    chosen: list[ImplicitGemmConfig] = []
    for config in configs:
        tile = (config.block_m, config.block_n)
        shape = (*tile, config.block_k, config.num_warps, config.loop_order, config.split_k)
        if len(chosen) < limit and tiles[tile] < PER_TILE and shape not in shapes:
            tiles[tile] += 1
            shapes.add(shape)
            chosen.append(config)
    return chosen


def _ranked(problem: ConvProblem, device: DeviceSpec) -> list[ImplicitGemmConfig]:
    """Configurations by weighed prediction: every tile with plain knobs, then all knobs of the best tiles.

    What the model is indifferent to (walk order of the tiles, compiled-in trip counts) stays at its default.
    """
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
