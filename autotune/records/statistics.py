"""Medians of timings and how sure they are, without assuming how the noise is distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Median:
    """A median and its confidence interval from order statistics, in the unit of the samples."""

    value: float
    low: float
    high: float
    samples: int


def median_of(samples: Sequence[float], confidence: float = CONFIDENCE) -> Median:
    """The median of `samples`; with too few for the confidence the interval is their whole range.

    A sample is below the true median with probability 1/2, so the interval between the k-th smallest and the k-th
    largest covers it with 1 - 2 * P(Binomial(n, 1/2) < k): the largest k that keeps the confidence is taken.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("a median needs samples")
    ordered = sorted(samples)
    count = len(ordered)
    half = count // 2
    value = ordered[half] if count % 2 else (ordered[half - 1] + ordered[half]) / 2
    below, k = 0.0, 0
    for successes in range(half):
        below += math.comb(count, successes) / 2**count
        if 2 * below > 1 - confidence:
            break
        k = successes + 1
    k = max(k, 1)
    return Median(value, ordered[k - 1], ordered[count - k], count)


def may_be_fastest(medians: Sequence[Median]) -> list[int]:
    """Places of those that no other is surely faster than: their interval begins before the first of all ends.

    The one whose interval ends first is the bar. Fewer samples than the bar's make an interval so wide that it says
    little; they cannot tie with it.
    """
    if not medians:
        return []
    bar = min(medians, key=lambda median: (median.high, median.value, -median.samples))
    return [
        place
        for place, median in enumerate(medians)
        if median == bar or (median.low <= bar.high and median.samples >= bar.samples)
    ]
