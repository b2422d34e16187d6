"""Which of several trials wins: a deterministic rule, the same for the tuner, the store and its tests."""

from __future__ import annotations

import math
from collections.abc import Iterable

from grouped_conv.autotune.records.record import Record, canonical
from grouped_conv.autotune.records.statistics import Median, may_be_fastest
from grouped_conv.kernels.values.problem import ConvProblem

TIE = 0.01
"""Relative difference of times without an interval below which they are ties: of predictions, and of old rows."""


def pick(records: Iterable[Record]) -> Record | None:
    """The winner among usable records: measured before predicted, then the fastest.

    Measured times tie where their confidence intervals overlap (see `statistics.may_be_fastest`), times without an
    interval within `TIE` of the fastest. Of ties fewer registers win, then fewer bytes of shared memory, then fewer
    warps, then the first in alphabetical order, so that the same rows always give the same answer.
    """
    usable = [record for record in records if is_usable(record)]
    measured = [record for record in usable if record.measured_us is not None]
    usable = measured or usable
    ties = may_be_fastest([_median(record) for record in usable])
    return min((usable[place] for place in ties), key=_cheapness, default=None)


def best_of(related: Iterable[Record], problem: ConvProblem, batch: int | None = None) -> Record | None:
    """The winner for `problem` among rows that differ from it in batch and epilogue only.

    Args:
        batch: whose rows to look at, by default the problem's. With another epilogue, predictions alone count, and of
            gradients only those with as much in their loads.
    """
    wanted = problem.batch if batch is None else batch
    rows = [record for record in related if record.problem.batch == wanted]
    same = pick(record for record in rows if record.problem.epilogue == problem.epilogue)
    return same or pick(record for record in rows if record.measured_us is None and _loads_alike(record, problem))


def _loads_alike(record: Record, problem: ConvProblem) -> bool:
    """May a prediction count for another epilogue of `problem`?

    A forward pass applies it once, after its loop. A gradient applies the activation's derivative and the scale to
    every tile it loads: of 28 predicted winners without an activation, 8 spilled when compiled with ReLU for an A100.
    """
    if problem.direction == "forward":
        return True
    mine, theirs = problem.epilogue, record.problem.epilogue
    return (mine.activation == "none", mine.scale) == (theirs.activation == "none", theirs.scale)


def is_usable(record: Record) -> bool:
    """May this configuration win? It has a time and no failure; what is known holds while it is tried once more."""
    return record.failure is None and _time(record) is not None


def _time(record: Record) -> float | None:
    """Measured time; otherwise what predictions are ranked by."""
    if record.measured_us is not None:
        return record.measured_us
    weighed: float | None = record.data.get("weighed_us", record.predicted_us)
    return weighed


def _median(record: Record) -> Median:
    """The time with its interval; without one, what is within `TIE` of it counts as equal."""
    us = _time(record) or 0.0
    if record.measured_us is None or record.low_us is None or record.high_us is None:
        return Median(us, us, us * (1 + TIE), 0)
    return Median(us, record.low_us, record.high_us, record.samples)


def _cheapness(record: Record) -> tuple[float, float, int, str]:
    """What the compiled code takes; unknown figures are taken for large ones."""
    known = record.data.get("resources", {})
    registers, shared = known.get("registers", math.inf), known.get("shared_bytes", math.inf)
    return registers, shared, record.config.num_warps, canonical(record.config.to_json())
