"""The configurations of one problem that a search may try, in the model's order, and which of them are neighbours."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.model.families import models_for, predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.records.record import canonical
from grouped_conv.kernels.families import FAMILIES, why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True)
class SearchSpace:
    """Distinct configurations, the heuristic's choice first, then the best by the model."""

    configs: tuple[KernelConfig, ...]

    @cached_property
    def rank(self) -> dict[KernelConfig, int]:
        """Place of each configuration."""
        return {config: place for place, config in enumerate(self.configs)}

    @cached_property
    def _axes(self) -> dict[str, dict[str, list[Any]]]:
        """By family and knob the values that occur, in order: what one step means."""
        seen: dict[str, dict[str, set[Any]]] = {}
        for config in self.configs:
            knobs = seen.setdefault(config.family, {})
            for field in fields(config):
                knobs.setdefault(field.name, set()).add(getattr(config, field.name))
        return {family: {name: sorted(known) for name, known in knobs.items()} for family, knobs in seen.items()}

    def steps(self, one: KernelConfig, other: KernelConfig) -> int:
        """Steps between two configurations over all axes; what another family does is out of reach."""
        if one.family != other.family:
            return 1_000_000
        total = 0
        for name, values in self._axes[one.family].items():
            mine, theirs = getattr(one, name), getattr(other, name)
            if mine != theirs:
                total += 1 if isinstance(mine, (str, bool)) else abs(values.index(mine) - values.index(theirs))
        return total

    def nearest(self, centre: KernelConfig, untried: Iterable[KernelConfig]) -> list[KernelConfig]:
        """The untried ones by their distance from `centre`, one step on one axis first; then in the model's order."""
        return sorted(untried, key=lambda config: (self.steps(centre, config), self.rank[config]))


@lru_cache(maxsize=512)
def search_space(problem: ConvProblem, device: DeviceSpec) -> SearchSpace:
    """The configurations worth trying for `problem` on `device`.

    Raises:
        ValueError: when no configuration of any family can run the problem, with each family's reason.
    """
    if device.key == native_lane.KEY:
        return ranked(problem, device, native_lane.configs(problem))

    def predicted(config: KernelConfig) -> float:
        return predict(problem, config, device).weighed_us

    best = heapq.merge(*(model.ranked(problem, device) for model in models_for(problem).values()), key=predicted)
    return SearchSpace(tuple(dict.fromkeys([choose(problem, device), *best])))


def ranked(problem: ConvProblem, device: DeviceSpec, configs: Iterable[KernelConfig]) -> SearchSpace:
    """Given configurations in the model's order."""
    scored = [(predict(problem, config, device).weighed_us, canonical(config.to_json()), config) for config in configs]
    return SearchSpace(tuple(dict.fromkeys(config for _, _, config in sorted(scored, key=lambda entry: entry[:2]))))


def explain(problem: ConvProblem, device: DeviceSpec) -> dict[str, tuple[int, Mapping[str, int]]]:
    """By family: configurations that a search may try, and how many others were left out for which reason.

    Together they are all that the family's space thought of. A family of this direction that thinks of none says why,
    with a count of 0. Reasons that differ in numbers only are counted together, with `#` for the numbers.
    """
    kept = set(search_space(problem, device).configs)
    found: dict[str, tuple[int, Mapping[str, int]]] = {}
    models = models_for(problem)
    for name, family in FAMILIES.items():
        if family.problem is not type(problem) or family.direction != problem.direction:
            continue
        count = sum(config.family == name for config in kept)
        looks = name in models and device.key != native_lane.KEY
        whole = dict(models[name].space(problem, device)) if looks else {}
        left_out = [reason for config, reason in whole.items() if reason and config not in kept]
        reasons = Counter(re.sub(r"(?<![A-Za-z0-9])\d+(x\d+)*", "#", reason) for reason in left_out)
        if not count and not reasons:
            reasons[why_invalid(problem, family.config()) or "not meant for such a problem"] = 0
        found[name] = (count, dict(reasons.most_common()))
    return found
