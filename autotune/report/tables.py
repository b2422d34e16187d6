"""What the tuning commands print: tables for people, JSON for programs. Predicted times are always called predicted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from grouped_conv.autotune.records.record import Record

if TYPE_CHECKING:
    from grouped_conv.autotune.measuring.self_check import FamilyCheck


def print_json(data: Mapping[str, Any]) -> None:
    """Print indented JSON on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def print_tuned(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The tables of `tune`: what was measured, what was predicted, and what was left to the heuristic, apart."""
    for source, printed in (("measured", _print_measured), ("predicted", _print_predicted)):
        chosen = [row for row in rows if row["source"] == source]
        if chosen:
            printed(title, chosen)
    for row in rows:
        if row["source"] == "aten":
            failed = f"all {row['unusable']} configurations failed, the first one: {row['first_failure']}"
            click.echo(f"{row['layer']}: PyTorch's own convolution, measured {row['aten_us']:.1f} us; {failed}")
        if row["source"] == "heuristic":
            click.echo(f"{row['layer']}: {row['config']} by the heuristic; nothing was tried")


def _print_measured(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = {
        "layer": lambda row: row["layer"],
        "configuration": lambda row: row["config"],
        "measured us": lambda row: f"{row['measured_us']:.1f}",
        "95 % interval": lambda row: f"{row['low_us']:.1f} .. {row['high_us']:.1f}",
        "PyTorch us": lambda row: _or_dash(row["aten_us"]),
        "PyTorch/ours": lambda row: _or_dash(row["times_aten"], 2),
        "heuristic's us": lambda row: _or_dash(row["default_us"]),
        "model's first us": lambda row: _or_dash(row["model_first_us"]),
        "tried": lambda row: str(row["candidates"]),
        "failed": lambda row: str(row["unusable"]),
    }
    _print_table(title, [[cell(row) for cell in columns.values()] for row in rows], list(columns))


def _or_dash(value: float | None, digits: int = 1) -> str:
    """A number; a dash for None, and for the NaN that a DataFrame makes of it."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def print_checks(device: str, path: str, checks: Sequence[FamilyCheck], as_json: bool) -> None:
    """The outcome of a self-check, one row per family."""
    if as_json:
        rows = [
            {"family": check.family, "direction": check.direction, "passed": check.passed, "detail": check.detail}
            for check in checks
        ]
        print_json({"device": device, "store": path, "checks": rows})
        return
    cells = [
        [check.family, check.direction, str(check.problems), "passed" if check.passed else "FAILED", check.detail]
        for check in checks
    ]
    _print_table(f"Self-check of {device}", cells, ["family", "direction", "problems", "outcome", "detail"])
    click.echo(f"Saved in {path}")


def _print_predicted(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row per layer, all times predicted."""
    columns = {
        "layer": lambda row: row["layer"],
        "configuration": lambda row: row["config"],
        "registers": lambda row: str(row["registers"]),
        "spills B": lambda row: str(row["spill_bytes"]),
        "shared KiB": lambda row: f"{row['shared_bytes'] / 1024:.0f}",
        "padding eff.": lambda row: f"{row['padding_efficiency']:.3f}",
        "wave eff.": lambda row: f"{row['wave_efficiency']:.3f}",
        "predicted us": lambda row: f"{row['predicted_us']:.1f}",
        "floor us": lambda row: f"{row['floor_us']:.1f}",
        "floor/predicted": lambda row: f"{row['floor_over_predicted']:.2f}",
        "bound": lambda row: row["bound"],
    }
    predicted = sum(row["predicted_us"] for row in rows)
    floor = sum(row["floor_us"] for row in rows)
    _print_table(title, [[cell(row) for cell in columns.values()] for row in rows], list(columns))
    click.echo(
        f"All times are predicted by a cost model, none was measured. Sum: predicted {predicted:.1f} us, "
        f"roofline floor {floor:.1f} us."
    )


def print_records(path: str, records: Sequence[Record]) -> None:
    """The table of `show`: one row per record."""
    rows = [
        [
            record.device,
            _problem(record),
            str(record.config),
            record.status if record.failure is None else f"{record.status}: {record.failure}",
            "" if record.predicted_us is None else f"{record.predicted_us:.1f}",
            _measured(record),
            "" if record.aten_us is None else f"{record.aten_us:.1f}",
            f"ABI {record.abi}, Triton {record.triton}",
        ]
        for record in records
    ]
    names = ["device", "problem", "configuration", "status", "predicted us", "measured us", "ATen us", "compiled with"]
    _print_table(path, rows, names)


def _measured(record: Record) -> str:
    """The median, with its interval and number of samples where they are known."""
    if record.measured_us is None:
        return ""
    bounds = "" if record.low_us is None or record.high_us is None else f" ({record.low_us:.1f}..{record.high_us:.1f})"
    return f"{record.measured_us:.1f}{bounds}" + (f" n={record.samples}" if record.samples else "")


def _problem(record: Record) -> str:
    """The problem without what nearly all rows share."""
    return str(record.problem).removeprefix("forward ")


def _print_table(title: str, rows: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """A rich table as wide as it needs to be where stdout is no terminal."""
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    texts = {"layer", "configuration", "bound", "device", "problem", "status", "compiled with"}
    texts |= {"family", "direction", "outcome", "detail"}
    for name in names:
        table.add_column(name, justify="left" if name in texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
