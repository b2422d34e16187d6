"""What a report shows of one search, as values: its rows in the order of their trials, their curve, grids and failures.

Times are those of one kind, measured where the search measures and predicted elsewhere, in microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from grouped_conv.autotune.records.record import Record, canonical
from grouped_conv.autotune.search.search import Search, time_of
from grouped_conv.kernels.values.config import KernelConfig

Knob = tuple[str, tuple[Any, ...]]
"""The name of a configuration's field, and the values that occur."""


def kind_of(search: Search) -> str:
    """`measured` or `predicted`: what the times of a search are."""
    return "measured" if search.measures else "predicted"


def shown_us(record: Record, measures: bool) -> float | None:
    """The time that a report may show of a row; None where it failed or has no time of this kind."""
    if record.failure is not None:
        return None
    return record.measured_us if measures else record.predicted_us


def trials_of(search: Search) -> list[Record]:
    """Rows that ended and say something of this kind of time, in the order in which they were first tried."""
    rows = [row for row in search.rows.values() if row.failure or shown_us(row, search.measures) is not None]
    return sorted(rows, key=lambda row: (row.data.get("tried", row.updated), canonical(row.config.to_json())))


def ranked(search: Search, rows: Iterable[Record]) -> list[Record]:
    """The usable ones as the search orders them, its winner first."""
    usable = [row for row in rows if shown_us(row, search.measures) is not None]
    best = search.best()
    return sorted(usable, key=lambda row: (row != best, time_of(row, search.measures), canonical(row.config.to_json())))


def best_so_far(rows: Sequence[Record], measures: bool) -> list[float | None]:
    """After each trial, the time of the one that led by then; predictions lead by what they are ranked by."""
    leader: Record | None = None
    course = []
    for row in rows:
        mine = time_of(row, measures) if shown_us(row, measures) is not None else None
        theirs = None if leader is None else time_of(leader, measures)
        if mine is not None and (theirs is None or mine < theirs):
            leader = row
        course.append(None if leader is None else shown_us(leader, measures))
    return course


@dataclass(frozen=True, slots=True)
class Cell:
    """The trials that share two knobs' values.

    Attributes:
        us: the best of their times; None when all failed.
        failures: how many failed, by kind.
    """

    us: float | None
    failures: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """One family's trials over two knobs.

    Attributes:
        across, down: the knobs; without a second knob that varies, `down` has one value, None.
        cells: by (value across, value down); what was never tried is absent.
        winner: the winner's place, if it is one of the family.
    """

    family: str
    across: Knob
    down: Knob
    cells: Mapping[tuple[Any, Any], Cell]
    winner: tuple[Any, Any] | None = None


def grids(rows: Sequence[Record], measures: bool, winner: Record | None = None) -> list[Grid]:
    """A grid of each family of which two trials differ, that of the fastest trial first."""
    by_family: dict[str, list[Record]] = {}
    for row in rows:
        by_family.setdefault(row.config.family, []).append(row)
    made = [grid for family, some in by_family.items() if (grid := _grid(family, some, measures, winner)) is not None]
    return sorted(made, key=lambda grid: min((cell.us for cell in grid.cells.values() if cell.us), default=1e30))


def _grid(family: str, rows: Sequence[Record], measures: bool, winner: Record | None) -> Grid | None:
    knobs = varying([row.config for row in rows])
    if not knobs:
        return None
    second: Knob = knobs[1] if len(knobs) > 1 else ("", (None,))
    down, across = (knobs[0], second) if len(knobs) > 1 else (second, knobs[0])
    members: dict[tuple[Any, Any], list[Record]] = {}
    won = None
    for row in rows:
        place = (getattr(row.config, across[0]), getattr(row.config, down[0], None))
        members.setdefault(place, []).append(row)
        won = place if row == winner else won
    cells = {}
    for place, some in members.items():
        times = [us for row in some if (us := shown_us(row, measures)) is not None]
        cells[place] = Cell(min(times, default=None), Counter(row.failure for row in some if row.failure))
    return Grid(family, across, down, cells, won)


def varying(configs: Sequence[KernelConfig]) -> list[Knob]:
    """Knobs of one family's configurations that differ: blocks in their order, then the others, more values first."""
    found: list[Knob] = []
    for field in fields(configs[0]):
        values = tuple(sorted({getattr(config, field.name) for config in configs}))
        if len(values) > 1:
            found.append((field.name, values))
    return sorted(found, key=lambda knob: 0 if knob[0].startswith("block_") else 1 / len(knob[1]))


def failures(rows: Iterable[Record]) -> list[tuple[str, int, str]]:
    """(kind, how many, the first one's detail) of what failed, the most frequent kind first."""
    details: dict[str, list[str]] = {}
    for row in rows:
        if row.failure is not None:
            details.setdefault(row.failure, []).append(row.detail)
    return sorted(((kind, len(known), known[0]) for kind, known in details.items()), key=lambda entry: -entry[1])
