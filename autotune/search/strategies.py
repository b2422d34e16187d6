"""Search strategies with one interface: each proposes configurations and is told results. All are seeded.

A strategy sees times and failures. It cannot tell whether a live, a predicting or a replaying runner made them, so that
a recorded sweep judges it without a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Protocol

from grouped_conv.autotune.search.search_space import SearchSpace
from grouped_conv.autotune.search.shortlist import various
from grouped_conv.kernels.values.config import KernelConfig


class Strategy(Protocol):
    """Decides what to try next."""

    def ask(self, most: int) -> list[KernelConfig]:
        """At most that many configurations, none of them twice; none when there is nothing left."""

    def tell(self, config: KernelConfig, us: float | None) -> None:
        """The time of a configuration that was proposed; None when it failed."""


class InOrder:
    """Tries configurations in a fixed order, whatever it is told."""

    def __init__(self, configs: Iterable[KernelConfig]) -> None:
        self._waiting = list(configs)[::-1]

    def ask(self, most: int) -> list[KernelConfig]:
        """The next ones."""
        return [self._waiting.pop() for _ in range(min(most, len(self._waiting)))]

    def tell(self, config: KernelConfig, us: float | None) -> None:
        """Nothing to learn."""


START = 8
"""Configurations of the model's order that local search begins with; analytic lists of 8 reach 95 to 99 % elsewhere."""
STEP = 4
"""Neighbours proposed at a time: few enough that a better centre is followed soon."""


class LocalSearch:
    """The model's first few, then the nearest untried neighbours of the best so far: one step on one axis first."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._untried = dict.fromkeys(various(space.configs))
        self._best: tuple[float, int] | None = None
        self._begun = False

    def ask(self, most: int) -> list[KernelConfig]:
        """The beginning, then steps around the best; the model's order as long as everything has failed."""
        if self._best is None:
            asked = list(self._untried)[: min(most, STEP if self._begun else START)]
        else:
            centre = self.space.configs[self._best[1]]
            asked = self.space.nearest(centre, self._untried)[: min(most, STEP)]
        self._begun = True
        for config in asked:
            del self._untried[config]
        return asked

    def tell(self, config: KernelConfig, us: float | None) -> None:
        """A better one becomes the centre; of equal ones the model's first."""
        if us is not None:
            found = (us, self.space.rank[config])
            self._best = found if self._best is None else min(self._best, found)


def _shuffled(space: SearchSpace, seed: int) -> InOrder:
    configs = list(space.configs)
    random.Random(seed).shuffle(configs)
    return InOrder(configs)


STRATEGIES: dict[str, Callable[[SearchSpace, int], Strategy]] = {
    "exhaustive": lambda space, seed: InOrder(space.configs),
    "random": _shuffled,
    "model": lambda space, seed: InOrder(various(space.configs)),
    "local": lambda space, seed: LocalSearch(space),
}
"""By name: (space, seed) to a strategy."""
DEFAULT_OFFLINE, DEFAULT_LIVE = "model", "local"


def make_strategy(name: str, space: SearchSpace, seed: int = 0) -> Strategy:
    """The strategy called `name`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; accepted: {', '.join(STRATEGIES)}")
    return STRATEGIES[name](space, seed)
