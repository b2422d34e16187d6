"""In which order configurations are worth trying, by the cost model: the best of every family, few of a tile first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from grouped_conv.autotune.model.families import PIPELINE, model_of
from grouped_conv.autotune.records.record import canonical
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

PER_TILE = 2
"""Configurations that may share a tile at first; one good tile must not crowd out the others."""


def shortlist(problem: ConvProblem, device: DeviceSpec, limit: int) -> list[KernelConfig]:
    """At most `limit` configurations: the heuristic's, then the best by the model, few of each tile."""
    return list(islice(various(search_space(problem, device).configs), limit))


def various(configs: Iterable[KernelConfig]) -> Iterator[KernelConfig]:
    """All configurations, the order kept but for variety: `PER_TILE` of each tile, then twice as many, and so on.

    In the first pass two that differ in the pipeline alone count as one.
    """
    waiting = list(configs)
    tiles: Counter[Any] = Counter()
    shapes: set[str] | None = set()
    quota = PER_TILE
    while waiting:
        later = []
        for config in waiting:
            tile = (config.family, model_of(config).tile(config))
            shape = canonical({name: value for name, value in config.to_json().items() if name not in PIPELINE})
            if tiles[tile] >= quota or (shapes is not None and shape in shapes):
                later.append(config)
                continue
            tiles[tile] += 1
            if shapes is not None:
                shapes.add(shape)
            yield config
        waiting, shapes, quota = later, None, quota * 2
