"""Racing candidates: interleaved rounds, so that drift of the clocks hits all alike, and losers are dropped early.

Pure: times come from a function, so that the rules are tested on invented clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grouped_conv.autotune.records.statistics import Median, median_of

Racer = TypeVar("Racer", bound=Hashable)
Sample = Callable[[Racer, int], Sequence[float] | None]
"""(who, how many) to times in microseconds; None when it failed and is out."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A stage of a race.

    Attributes:
        samples: of each candidate by the end of the stage.
        visit: samples taken at a time before it is the next one's turn.
        drop_above: a candidate whose median is above this multiple of the best is out after the stage.
    """

    samples: int
    visit: int
    drop_above: float


QUALIFYING = (Rung(5, 5, 2.0), Rung(20, 5, 1.25))
"""5 samples tell within 10 to 20 % how long a kernel takes: twice the best is then no accident."""
FINAL_SAMPLES, LEAST_FINAL_SAMPLES = 100, 20
FINAL_SECONDS = 20.0
"""A final of long kernels takes fewer samples; of kernels below 20 ms it takes them all."""


def race(
    racers: Sequence[Racer],
    sample: Sample[Racer],
    rungs: Sequence[Rung],
    *,
    kept: Sequence[Racer] = (),
    begun: Mapping[Racer, Sequence[float]] | None = None,
) -> Mapping[Racer, Median]:
    """The median of every racer that did not fail, those dropped early included.

    Args:
        kept: racers that are never dropped and by which none is dropped: what the others are compared with afterwards.
        begun: samples that were taken before.
    """
    times: dict[Racer, list[float]] = {racer: list((begun or {}).get(racer, ())) for racer in (*racers, *kept)}
    alive = list(times)
    for rung in rungs:
        while any(len(times[racer]) < rung.samples for racer in alive):
            for racer in list(alive):
                missing = rung.samples - len(times[racer])
                if missing <= 0:
                    continue
                found = sample(racer, min(rung.visit, missing))
                if found is None:
                    alive.remove(racer)
                    del times[racer]
                else:
                    times[racer].extend(found)
        medians = {racer: median_of(times[racer]).value for racer in alive if racer not in kept}
        limit = min(medians.values(), default=0.0) * rung.drop_above
        alive = [racer for racer in alive if racer in kept or medians[racer] <= limit]
    return {racer: median_of(samples) for racer, samples in times.items()}


def final_rungs(rough_us: Iterable[float]) -> tuple[Rung, ...]:
    """The one stage of a final, given rough times of all that race in it."""
    one_round = 1e-6 * sum(rough_us)
    fitting = int(FINAL_SECONDS / one_round) if one_round else FINAL_SAMPLES
    return (Rung(max(LEAST_FINAL_SAMPLES, min(FINAL_SAMPLES, fitting)), 10, float("inf")),)
