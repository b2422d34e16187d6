"""What `tune` says instead of searching: `--dry-run` and `--explain-space`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import click

from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.report import tables
from grouped_conv.autotune.search.efforts import Plan
from grouped_conv.autotune.search.search import Search
from grouped_conv.autotune.search.search_space import explain
from grouped_conv.autotune.store.store import Store
from grouped_conv.autotune.workers.pool import default_jobs
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.preparing.targets import Target

COMPILE_SECONDS = 2.0
"""CPU time of one compilation where none was recorded: 1 to 3 s on the cores this was written on."""
MEASURE_SECONDS = 1.0
"""Verifying and timing one configuration on a GPU; assumed."""


def dry_run(
    problems: Mapping[str, ConvProblem], target: Target, plan: Plan, store: Store, jobs: int | None, as_json: bool
) -> None:
    """Print how many trials each problem would take, beyond those that are known, and about how long all would take."""
    if target.spec.key == native_lane.KEY:
        problems = {name: native_lane.as_computed(problem) for name, problem in problems.items()}
    rows: list[dict[str, Any]] = []
    for name, problem in problems.items():
        search = Search(name, problem, target.spec, store, plan, measures=target.measures)
        first = [str(trial.config) for trial in search.batch()]
        rows.append(
            {"layer": name, "trials": len(first) + search.remaining, "first": first[:3], "known": len(search.rows)}
        )
    recorded = [row.data.get("compile_seconds") for row in store.trials(device_key=target.spec.key)]
    known = [seconds for seconds in recorded if seconds]
    each = statistics.fmean(known) if known else COMPILE_SECONDS
    count = sum(row["trials"] for row in rows)
    seconds = count * (each / (jobs or default_jobs()) + (MEASURE_SECONDS if target.measures else 0.0))
    basis = f"{len(known)} recorded compilations" if known else "an assumed compilation"
    if as_json:
        tables.print_json({"device": target.spec.key, "layers": rows, "trials": count, "seconds": round(seconds, 1)})
        return
    for row in rows:
        click.echo(f"{row['layer']}: {row['trials']} trials ({row['known']} known); {'; '.join(row['first'])} ...")
    click.echo(f"{count} trials on {target.spec.key}, about {seconds:.0f} s at {each:.1f} s each by {basis}")


def explained(problems: Mapping[str, ConvProblem], device: DeviceSpec, as_json: bool) -> None:
    """Print, for each problem and kernel family, what is in the space and what is not, by reason."""
    found = {name: explain(problem, device) for name, problem in problems.items()}
    if as_json:
        layers = {
            name: {family: {"kept": kept, "left_out": dict(reasons)} for family, (kept, reasons) in families.items()}
            for name, families in found.items()
        }
        tables.print_json({"device": device.key, "layers": layers})
        return
    for name, families in found.items():
        for family, (kept, reasons) in families.items():
            click.echo(f"{name} on {device.key}, {family}: {kept} configurations")
            for reason, count in reasons.items():
                click.echo(f"  {count or '-':>6}  {reason}")
