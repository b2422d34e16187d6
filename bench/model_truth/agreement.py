"""How well predicted times agree with other times: rank correlations and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FAR = 2.0
"""A ratio beyond this, either way, is counted as a deviation."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well pairs of times (ours, theirs) agree.

    Attributes:
        pairs: how many.
        spearman: correlation of the ranks.
        kendall: Kendall's tau-b, which allows for ties.
        rates: Spearman's correlation of work / time: do the same shapes run well, regardless of their size?
        low, median, high: 10th, 50th and 90th percentile of ours / theirs.
        far: how many ratios are beyond `FAR`.
    """

    pairs: int
    spearman: float
    kendall: float
    rates: float
    low: float
    median: float
    high: float
    far: int

    def __str__(self) -> str:
        ratios = f"ratio {self.median:.2f} ({self.low:.2f} to {self.high:.2f})"
        return (
            f"{self.pairs:3} pairs  Spearman {self.spearman:.3f}  Kendall {self.kendall:.3f}  of rates {self.rates:.3f}"
            f"  {ratios}  beyond {FAR:g}x: {self.far}"
        )


def agreement(ours: Sequence[float], theirs: Sequence[float], work: Sequence[float]) -> Agreement:
    """Compare two lists of times, pair by pair.

    Args:
        work: what each pair computes, in any unit.

    Raises:
        ValueError: for lists of different lengths, or with fewer than two times.
    """
    from scipy import stats

    if not len(ours) == len(theirs) == len(work) or len(ours) < 2:
        raise ValueError(
            f"lists of the same length, at least 2, are compared, but got {len(ours)}, {len(theirs)} and {len(work)}"
        )
    rates = [[amount / us for amount, us in zip(work, times, strict=True)] for times in (ours, theirs)]
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    return Agreement(
        len(ours),
        float(stats.spearmanr(ours, theirs).statistic),
        float(stats.kendalltau(ours, theirs).statistic),
        float(stats.spearmanr(*rates).statistic),
        percentile(ratios, 0.1),
        percentile(ratios, 0.5),
        percentile(ratios, 0.9),
        sum(is_far(ratio) for ratio in ratios),
    )


def is_far(ratio: float) -> bool:
    """Is a ratio of times beyond `FAR`, either way?"""
    return not 1 / FAR <= ratio <= FAR


def order(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Kendall's tau-b of one shape's configurations; `None` for fewer than three, or where all are tied on one side."""
    from scipy import stats

    if len(ours) < 3 or len(set(ours)) == 1 or len(set(theirs)) == 1:
        return None
    return float(stats.kendalltau(ours, theirs).statistic)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted `values` are, interpolated between neighbours; NaN without values."""
    if not values:
        return math.nan
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])
