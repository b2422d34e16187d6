"""What tuning found, as a table with one row per problem; predicted and measured figures never share a column."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.search.search import Search, key_of
from grouped_conv.autotune.search.search_space import search_space

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it.

    Attributes:
        searches: by problem, in the order given.
        interrupted: whether Ctrl-C ended it; what had been tried by then is kept.
    """

    searches: tuple[Search, ...]
    interrupted: bool


def frame_of(tuned: Iterable[Tuned]) -> pandas.DataFrame:
    """One row per problem of every search; `attrs["interrupted"]` says whether Ctrl-C ended one.

    Raises:
        RuntimeError: when every configuration of a problem failed, with the first failure.
        KeyboardInterrupt: when Ctrl-C came before there was anything to return.
    """
    import pandas

    done = list(tuned)
    interrupted = any(one.interrupted for one in done)
    rows = [table_row(search) for one in done for search in one.searches if search.best() or not one.interrupted]
    if interrupted and not rows:
        raise KeyboardInterrupt
    frame = pandas.DataFrame(rows)
    frame.attrs["interrupted"] = interrupted
    return frame


def table_row(search: Search) -> dict[str, Any]:
    """The winner's figures; times in microseconds. PyTorch's own convolution wins where nothing else can be used.

    Raises:
        RuntimeError: when every configuration that was tried failed, with the first failure, and PyTorch's own
            convolution was not timed either.
    """
    best, aten_us = search.best(), aten_us_of(search)
    if best is None and search.rows and aten_us is None:
        reasons = [record.detail for record in search.rows.values()]
        where = search.device.known_as
        raise RuntimeError(f"no configuration of {search.name} ({search.problem}) can be used on {where}: {reasons[0]}")
    counts = {
        "candidates": len(search.rows),
        "unusable": sum(record.failure is not None for record in search.rows.values()),
    }
    row = {"layer": search.name, "device": search.device.key}
    if best is None and aten_us is not None:
        first = next(record.detail for record in search.rows.values() if record.failure)
        lost = {"aten_us": aten_us, "first_failure": first, "measured_now": search.ran}
        return {**row, "config": "PyTorch's own convolution", "source": "aten", **lost, **counts}
    if best is None:
        return {**row, "config": str(search.default), "source": "heuristic", **counts}
    if search.measures and best.measured_us is not None:
        return {**row, **_measured(search, best), **counts, "measured_now": search.ran, "source": "measured"}
    return {**row, **_predicted(best), **counts, "compiled_now": search.ran, "source": "predicted"}


def aten_us_of(search: Search) -> float | None:
    """PyTorch's own convolution where the search measures; the latest time of it."""
    timed = [record for record in search.rows.values() if search.measures and record.aten_us is not None]
    return max(timed, key=lambda record: record.updated).aten_us if timed else None


def _predicted(best: Record) -> dict[str, Any]:
    assert best.predicted_us is not None
    resources = Resources.from_json(best.data["resources"])
    return {
        "config": str(best.config),
        "registers": resources.registers,
        "spill_bytes": resources.spill_bytes,
        "shared_bytes": resources.shared_bytes,
        "padding_efficiency": best.data["padding_efficiency"],
        "wave_efficiency": best.data["wave_efficiency"],
        "predicted_us": best.predicted_us,
        "floor_us": best.data["floor_us"],
        "floor_over_predicted": best.data["floor_us"] / best.predicted_us,
        "bound": best.data["bound"],
    }


def _measured(search: Search, best: Record) -> dict[str, Any]:
    """Beside the winner's time: the heuristic's choice and the model's first one, and PyTorch's own convolution."""
    first = search.rows.get(key_of(search_space(search.problem, search.device).configs[0]))
    default = search.rows.get(key_of(search.default))
    assert best.measured_us is not None
    return {
        "config": str(best.config),
        "measured_us": best.measured_us,
        "low_us": best.low_us,
        "high_us": best.high_us,
        "samples": best.samples,
        "aten_us": best.aten_us,
        "times_aten": None if best.aten_us is None else best.aten_us / best.measured_us,
        "default_us": None if default is None else default.measured_us,
        "model_first_us": None if first is None else first.measured_us,
    }
