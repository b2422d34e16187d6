"""How much a search may try: the named efforts and what they mean with and without a device to measure on."""

from __future__ import annotations

from dataclasses import dataclass

from grouped_conv.autotune.search.strategies import DEFAULT_LIVE, DEFAULT_OFFLINE

EFFORTS = {"none": 0, "quick": 16, "standard": 64, "full": 256, "exhaustive": None}
"""Trials per problem; None for every configuration of the space."""
COMPILED_SHARE = 3 / 8
"""Without a device, the model ranks the whole space at once, so only this part of the trials, the first by its order,
is compiled: 24 of 64. That keeps 15 problems on two cores within 20 minutes, at 1.2 to 2 s of wall time each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search may spend.

    Attributes:
        trials: per problem; None for all.
        strategy: a name of `strategies.STRATEGIES`.
        seed: of everything random.
        budget_seconds: wall time after which no trial is begun; None for no limit.
        resume: go on from what the store knows; otherwise every trial is run again, but for those that took their
            process down.
    """

    trials: int | None
    strategy: str
    seed: int = 0
    budget_seconds: float | None = None
    resume: bool = True


def plan_effort(
    effort: str,
    *,
    measures: bool,
    strategy: str | None = None,
    seed: int = 0,
    budget_seconds: float | None = None,
    limit: int | None = None,
    resume: bool = True,
) -> Plan:
    """The plan of a named effort.

    Args:
        measures: whether trials are measured on a device or compiled and predicted.
        limit: trials per problem instead of the effort's.
        resume: see `Plan`.

    Raises:
        ValueError: for an unknown effort, a limit below 1 or a budget below 0.
    """
    if effort not in EFFORTS:
        raise ValueError(f"unknown effort {effort!r}; accepted: {', '.join(EFFORTS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, but got {limit}")
    if budget_seconds is not None and budget_seconds < 0:
        raise ValueError(f"budget_seconds must not be negative, but got {budget_seconds}")
    trials = EFFORTS[effort]
    if trials is not None and not measures:
        trials = round(trials * COMPILED_SHARE)
    default = DEFAULT_LIVE if measures else DEFAULT_OFFLINE
    if effort == "exhaustive":
        default = "exhaustive"
    return Plan(limit or trials, strategy or default, seed, budget_seconds, resume)
