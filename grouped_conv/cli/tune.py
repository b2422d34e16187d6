"""The `tune` and `verify` sub-commands: searching for configurations, and checking the kernels of a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grouped_conv.autotune.report import tables
from grouped_conv.autotune.search import efforts
from grouped_conv.autotune.search.progress import json_lines, progress_bar
from grouped_conv.cli.problem_options import Source, source_options
from grouped_conv.kernels.values.problem import ConvProblem

if TYPE_CHECKING:
    from grouped_conv.autotune.report.writing import Run
    from grouped_conv.autotune.search.efforts import Plan
    from grouped_conv.autotune.store.store import Store
    from grouped_conv.preparing.targets import Target

OFFLINE_DEVICE = "h100"
"""What is predicted for where no GPU is here and none was named."""
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line, except those that say where problems come from."""

    devices: tuple[str, ...]
    effort: str
    strategy: str | None
    limit: int | None
    seed: int
    budget_seconds: float | None
    jobs: int | None
    resume: bool
    as_json: bool
    report: Path | None

    def targets(self) -> list[Target]:
        """The devices, or the one that is here, or the one that is predicted for by default."""
        from grouped_conv.preparing.targets import default_device, target_of

        return [target_of(name) for name in self.devices or (default_device() or OFFLINE_DEVICE,)]

    def plan(self, target: Target) -> Plan:
        """What may be spent on each problem of a device."""
        return efforts.plan_effort(
            self.effort,
            measures=target.measures,
            strategy=self.strategy,
            seed=self.seed,
            budget_seconds=self.budget_seconds,
            limit=self.limit,
            resume=self.resume,
        )


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `tune` after those of its source, in the order in which its help lists them."""
    for option in reversed(
        (
            click.option(
                "--device",
                "devices",
                multiple=True,
                help="h100, sm_90, ... to predict; cuda or cuda:1 to measure. Default: the GPU here, else h100.",
            ),
            click.option("--effort", type=click.Choice(list(efforts.EFFORTS)), default="standard", show_default=True),
            click.option("--strategy", type=click.Choice(["exhaustive", "random", "model", "local"])),
            click.option("--limit", type=click.IntRange(min=1), help="Trials per layer instead of the effort's."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--budget-seconds", type=click.FloatRange(min=0), help="Begin no trial after so long."),
            click.option("--jobs", type=click.IntRange(min=1), help="Compile processes; by default one per core."),
            click.option(
                "--resume/--no-resume", default=True, help="Go on from finished trials (default), or run them again."
            ),
            click.option("--dry-run", is_flag=True, help="Say what would be tried, and for how long."),
            click.option("--explain-space", is_flag=True, help="Count what is in the space, and what is not and why."),
            click.option("--report", type=click.Path(path_type=Path), help="An HTML page about the search."),
            click.option("--json", "as_json", is_flag=True, help="JSON lines: each trial, then the result."),
        )
    ):
        command = option(command)
    return command


@click.command()
@source_options
@_options
def tune(devices: tuple[str, ...], dry_run: bool, explain_space: bool, source: Source, **rest: Any) -> None:
    """Choose configurations for the convolutions of MODEL, or of other sources, and save them.

    On a GPU that is here they are measured. For a named one every configuration is compiled and judged by a cost model,
    and no time shown was measured.
    """
    from grouped_conv.autotune.report import writing as report
    from grouped_conv.autotune.store.store import default_store

    problems, options = source.problems(), Options(devices, **rest)
    if options.report is not None:
        if dry_run or explain_space:
            raise click.UsageError("--report says what tuning found; --dry-run and --explain-space tune nothing")
        report.check(options.report)
    header = {"model": source.model, "dtype": source.dtype, "batch": source.batch} if source.model else {}
    store, targets = default_store(), options.targets()
    if explain_space:
        from grouped_conv.cli.tune_preview import explained

        for target in targets:
            explained(problems, target.spec, options.as_json)
        return
    if dry_run:
        from grouped_conv.cli.tune_preview import dry_run as preview

        for target in targets:
            preview(problems, target, options.plan(target), store, options.jobs, options.as_json)
        return
    runs: list[report.Run] = []
    for target in targets:
        _tune(problems, target, options, store, header, runs)
        if runs[-1].interrupted:
            sys.exit(INTERRUPTED)


def _tune(
    problems: dict[str, ConvProblem],
    target: Target,
    options: Options,
    store: Store,
    header: dict[str, Any],
    runs: list[Run],
) -> None:
    """Tune for one device, add it to the report's runs and print what was found."""
    from grouped_conv.autotune.report import writing as report
    from grouped_conv.autotune.search.tuned_table import frame_of
    from grouped_conv.preparing.targets import tune_on

    plan = options.plan(target)
    lines = options.as_json and not sys.stdout.isatty()
    verb = "measuring on" if target.measures else "compiling for"
    try:
        with nullcontext(json_lines) if lines else progress_bar(f"{verb} {target.spec.key}") as progress:
            tuned = tune_on(target, problems, store, plan, progress, options.jobs)
        runs.append(report.Run(target.spec, options.effort, plan, tuned.searches, tuned.interrupted))
        if options.report is not None:
            report.write(options.report, runs)
        frame = frame_of([tuned])
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    rows = [  # what a column lacks is NaN in a frame of floats
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    times = "measured" if target.measures else "predicted, not measured"
    if options.as_json:
        whole = {**header, "device": target.spec.key, "store": str(store.path), "times": times, "layers": rows}
        if options.report is not None:
            whole["report"] = str(options.report)
        click.echo(json.dumps({**whole, "interrupted": tuned.interrupted}, allow_nan=False))
        return
    model = f"{header['model']}, batch {header['batch']}, {header['dtype']}, " if header else ""
    tables.print_tuned(f"{model}on {target.spec.name}", rows)
    click.echo(f"Saved as {times.partition(',')[0]} in {store.path}")
    if options.report is not None:
        click.echo(f"Report: {options.report}")
    if tuned.interrupted:
        click.echo("Stopped early; the same command goes on from here.", err=True)


@click.command()
@click.option("--device", default=None, help="cuda, cuda:1, ...; default: the current GPU.")
@click.option("--family", "families", multiple=True, help="Only this kernel family; by default all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify(device: str | None, families: tuple[str, ...], as_json: bool) -> None:
    """Check every kernel family on this machine's device: small odd problems against float64, and keep the outcome.

    Kernels of a family whose check failed are not used. Exit code 1 when one did.
    """
    from grouped_conv.autotune.measuring import self_check
    from grouped_conv.autotune.store.store import default_store
    from grouped_conv.preparing.targets import target_of

    target = target_of(device)
    if target.index is None:
        raise click.UsageError(f"{device} is a name to predict for; give a device that is here, such as cuda")
    known = self_check.families()
    unknown = sorted(set(families) - {name for name, _ in known})
    if unknown:
        raise click.UsageError(f"unknown families {unknown}; known: {', '.join(name for name, _ in known)}")
    pairs = [pair for pair in known if not families or pair[0] in families]
    store = default_store()
    found = self_check.check_kernels(target.spec, store, pairs, index=target.index)
    tables.print_checks(target.spec.key, str(store.path), found, as_json)
    if not all(check.passed for check in found):
        sys.exit(1)
