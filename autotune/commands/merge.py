"""The `import` and `merge` sub-commands of `grouped-conv`: records of other files become the store's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grouped_conv.autotune.report import tables

if TYPE_CHECKING:
    from grouped_conv.autotune.records.record import Record

_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
SHOWN = 20
"""Conflicts printed for people; JSON has all of them."""


@click.command("import")
@_FILES
@_JSON
def import_records(files: Sequence[str], as_json: bool) -> None:
    """Take the records of exports FILE... into the store.

    Every line of every file is checked first: an error names the line, and then nothing is imported.
    """
    from grouped_conv.autotune.store.exchange import loads

    _take([record for file in files for record in loads(_text(file), file)], as_json)


@click.command("merge")
@_FILES
@_JSON
def merge_records(files: Sequence[str], as_json: bool) -> None:
    """Take the records of FILE... into the store: other stores, or exports of them. The files are not changed.

    Of two records of one trial wrong results win over measurements, those over failures, those over predictions; then
    more samples, the lower upper bound of the confidence interval, the newest. What lost is listed.
    """
    from grouped_conv.autotune.store.exchange import read_file

    _take([record for file in files for record in read_file(file)], as_json)


def _text(file: str) -> str:
    try:
        return Path(file).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not an export of a tuning store ({error}); `merge` takes stores") from error


def _take(records: Sequence[Record], as_json: bool) -> None:
    from grouped_conv.autotune.store.store import default_store

    store = default_store()
    merged = store.merge(records)
    if as_json:
        conflicts = [{"kept": pair.kept.to_json(), "lost": pair.lost.to_json()} for pair in merged.conflicts]
        tables.print_json({"store": str(store.path), "trials": len(merged.records), "conflicts": conflicts})
        return
    click.echo(f"{len(merged.records)} trials merged into {store.path}, {len(merged.conflicts)} conflicts")
    for pair in merged.conflicts[:SHOWN]:
        click.echo(f"  {pair.lost.device} {pair.lost.problem} [{pair.lost.config}]")
        click.echo(f"    kept {_outcome(pair.kept)}, lost {_outcome(pair.lost)}")
    if len(merged.conflicts) > SHOWN:
        click.echo(f"  and {len(merged.conflicts) - SHOWN} more; --json lists all")


def _outcome(record: Record) -> str:
    """How a trial ended, in a few words."""
    if record.status == "failed":
        return f"failed ({record.failure})"
    time: Any = record.measured_us if record.status == "measured" else record.predicted_us
    samples = f", {record.samples} samples" if record.samples else ""
    return f"{record.status} {time:.1f} us{samples}"
