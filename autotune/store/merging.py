"""Two sets of records as one, and what differs between two: rules on values, which know no files.

Records are of the same trial when problem, device, configuration, ABI and Triton agree. One of them is kept, by an
order in which no two different records are equal: so merging is commutative, associative and idempotent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from grouped_conv.autotune.records.ranking import TIE, pick
from grouped_conv.autotune.records.record import Record, canonical, problem_key

_WEIGHT = {"started": 0, "predicted": 1, "failed": 2, "measured": 3}
_WRONG = 4
"""Wrong results weigh most: a configuration that was wrong once may not win for having been lucky elsewhere."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two different records of one trial: the one that stays and the one that goes."""

    kept: Record
    lost: Record


@dataclass(frozen=True, slots=True)
class Merged:
    """One record of each trial, ordered by key, and what lost."""

    records: tuple[Record, ...]
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One problem on one device about which two sets disagree.

    Attributes:
        kind: `only in one`, `only in the other`, `winner` (another configuration) or `time` (of the same).
        one, other: the winners, None where a set has none.
    """

    kind: str
    one: Record | None
    other: Record | None

    @property
    def record(self) -> Record:
        """A winner, to take the problem, device and versions from."""
        record = self.one or self.other
        assert record is not None
        return record


def merge(one: Iterable[Record], other: Iterable[Record]) -> Merged:
    """One record of each trial: wrong results before measurements before other failures before predictions.

    Among equals the one with more samples, then the lower upper bound of the interval, then the newest, then the last
    in the order of their JSON.
    """
    kept: dict[tuple[str, str, int, str, str], Record] = {}
    conflicts = []
    for record in (*one, *other):
        known = kept.setdefault(record.key, record)
        if _weight(known) != _weight(record):
            winner, loser = (record, known) if _weight(record) > _weight(known) else (known, record)
            kept[record.key] = winner
            conflicts.append(Conflict(winner, loser))
    final = [Conflict(kept[conflict.lost.key], conflict.lost) for conflict in conflicts]
    return Merged(tuple(kept[key] for key in sorted(kept)), tuple(final))


def diff(one: Iterable[Record], other: Iterable[Record]) -> list[Difference]:
    """Where the winners of two sets differ, by device and problem; times within a tie of each other do not."""
    winners = _winners(one), _winners(other)
    found = []
    for key in sorted({**winners[0], **winners[1]}):
        pair = winners[0].get(key), winners[1].get(key)
        kind = _kind(*pair)
        if kind:
            found.append(Difference(kind, *pair))
    return found


def _winners(records: Iterable[Record]) -> dict[tuple[str, str, int, str], Record]:
    groups: dict[tuple[str, str, int, str], list[Record]] = {}
    for record in records:
        key = (record.device, problem_key(record.problem), record.abi, record.triton)
        groups.setdefault(key, []).append(record)
    best = {key: pick(rows) for key, rows in groups.items()}
    return {key: record for key, record in best.items() if record is not None}


def _kind(one: Record | None, other: Record | None) -> str:
    if one is None:
        return "only in the other"
    if other is None:
        return "only in one"
    if one.config != other.config:
        return "winner"
    same = one.source == other.source and math.isclose(_us(one), _us(other), rel_tol=TIE)
    return "" if same else "time"


def _us(record: Record) -> float:
    return (record.measured_us if record.measured_us is not None else record.predicted_us) or 0.0


def _weight(record: Record) -> tuple[int, int, float, float, str]:
    weight = _WRONG if record.failure == "wrong" and record.status == "failed" else _WEIGHT[record.status]
    bound = math.inf if record.high_us is None else record.high_us
    return weight, record.samples, -bound, record.updated, canonical(record.to_json())
