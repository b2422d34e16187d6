"""A family's search space as data: each configuration that was thought of, and why those that are left out are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.records.record import canonical
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

Config = TypeVar("Config", bound=KernelConfig)

SPILLS = "expected to spill"
"""The reason of configurations whose sums and operands are estimated not to fit the registers."""


def judged(
    problem: ConvProblem,
    device: DeviceSpec,
    configs: Iterable[Config],
    more: Callable[[Config], str | None] = lambda config: None,
) -> Iterator[tuple[Config, str | None]]:
    """Each configuration with the reason that leaves it out, None for one worth compiling.

    Args:
        more: a reason besides those of the validity predicate, asked of what can run.
    """
    for config in configs:
        yield config, why_invalid(problem, config, device) or more(config)


def best_first(
    problem: ConvProblem,
    device: DeviceSpec,
    space: Iterable[tuple[Config, str | None]],
    predict: Callable[[ConvProblem, Config, DeviceSpec], Prediction],
) -> list[Config]:
    """What is worth compiling, without repetitions, by weighed prediction; equal ones by their canonical JSON."""
    kept = dict.fromkeys(config for config, reason in space if reason is None)
    scored = [(predict(problem, config, device).weighed_us, canonical(config.to_json()), config) for config in kept]
    return [config for _, _, config in sorted(scored, key=lambda entry: entry[:2])]
