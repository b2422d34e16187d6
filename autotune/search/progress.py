"""What a search shows while it goes on: a bar with the time left and the failures by kind, or a JSON line per trial."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from grouped_conv.autotune.records.record import Record
    from grouped_conv.autotune.search.tuner import Event

Report = Callable[["Event"], None]


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar on stderr while something is tried; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    failures: Counter[str] = Counter()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None, last="", visible=False)

        def report(event: Event) -> None:
            last = ""
            if event.record is not None:
                failures.update([event.record.failure] if event.record.failure else [])
                last = f"{event.name} {event.record.config} {_failed(failures)}"
            bar.update(task, completed=event.done, total=event.total, last=last, visible=event.total > 0)

        yield report


def _failed(failures: Counter[str]) -> str:
    if not failures:
        return ""
    return f"[failed: {', '.join(f'{kind} {count}' for kind, count in sorted(failures.items()))}]"


def json_lines(event: Event) -> None:
    """One line of JSON on stdout per trial that has ended."""
    if event.record is not None:
        click.echo(json.dumps({"event": "trial", "layer": event.name, **trial_json(event.record)}, allow_nan=False))


def trial_json(record: Record) -> dict[str, Any]:
    """What a line, or a row of a table of trials, says of one trial."""
    return {
        "device": record.device,
        "config": str(record.config),
        "family": record.config.family,
        "status": record.status,
        "predicted_us": record.predicted_us,
        "measured_us": record.measured_us,
        "low_us": record.low_us,
        "high_us": record.high_us,
        "aten_us": record.aten_us,
        "failure": record.failure,
        "detail": record.detail,
        "compile_seconds": record.data.get("compile_seconds"),
    }
