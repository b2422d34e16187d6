"""Which configurations are worth compiling, by the cost model: the best of every family, few of each tile."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any

from grouped_conv.autotune.cost import predict
from grouped_conv.autotune.directions import model_of
from grouped_conv.autotune.families import MODELS
from grouped_conv.autotune.heuristic import choose
from grouped_conv.autotune.prediction import MODEL_VERSION
from grouped_conv.autotune.records import canonical, problem_key
from grouped_conv.autotune.space import SPACE_VERSION
from grouped_conv.autotune.store import Store
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem

PER_TILE = 2
"""Shortlisted configurations that may share a tile; one good tile must not crowd out the others."""


def shortlist(problem: ConvProblem, device: DeviceSpec, store: Store, limit: int) -> list[KernelConfig]:
    """At most `limit` configurations: the heuristic's, then the best by the model, few of each tile.

    Remembered in the store for this space, this model and this kernel ABI.
    """
    key = canonical([problem_key(problem), device.to_json(), limit, SPACE_VERSION, MODEL_VERSION, ABI_VERSION])
    recalled = store.recall_search(key)
    if recalled is not None:
        return [KernelConfig.from_json(data) for data in recalled]

    def predicted(config: KernelConfig) -> float:
        return predict(problem, config, device).weighed_us

    best = heapq.merge(*(model.ranked(problem, device) for model in MODELS.values()), key=predicted)
    chosen = _various([choose(problem, device), *best], limit)
    store.remember_search(key, [config.to_json() for config in chosen])
    return chosen


def _various(configs: Iterable[KernelConfig], limit: int) -> list[KernelConfig]:
    """The first configurations, but only `PER_TILE` of a tile, and one of those that differ in the pipeline alone."""
    tiles: Counter[Any] = Counter()
    shapes: set[str] = set()
    chosen: list[KernelConfig] = []
    for config in configs:
        tile = (config.family, model_of(config).tile(config))
        shape = canonical({name: value for name, value in config.to_json().items() if name not in PIPELINE})
        if len(chosen) < limit and tiles[tile] < PER_TILE and shape not in shapes:
            tiles[tile] += 1
            shapes.add(shape)
            chosen.append(config)
    return chosen


PIPELINE = ("num_stages", "cache_a", "swizzle_m", "static_trips")
"""Knobs by which two shortlisted configurations must not differ alone."""
