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

from grouped_conv.autotune import efforts, tables
from grouped_conv.autotune.progress import json_lines, progress_bar
from grouped_conv.autotune.workloads import MODELS
from grouped_conv.kernels.problem import DIRECTIONS, ConvProblem, dtype_name

if TYPE_CHECKING:
    from grouped_conv.autotune.efforts import Plan
    from grouped_conv.autotune.store import Store
    from grouped_conv.tuning import Target

OFFLINE_DEVICE = "h100"
"""What is predicted for where no GPU is here and none was named."""
INTERRUPTED = 130


class _Dtype(click.ParamType):
    """A dtype the kernels compute."""

    name = "dtype"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return dtype_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Model(click.ParamType):
    """A model of the table of workloads."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.lower() not in MODELS:
            self.fail(f"unknown model {value!r}; known: {', '.join(MODELS)}", param, ctx)
        return str(value.lower())


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said, besides where problems come from."""

    devices: tuple[str, ...]
    effort: str
    strategy: str | None
    limit: int | None
    seed: int
    budget_seconds: float | None
    jobs: int | None
    as_json: bool

    def targets(self) -> list[Target]:
        """The devices, or the one that is here, or the one that is predicted for by default."""
        import torch

        from grouped_conv.tuning import target_of

        return [target_of(name) for name in self.devices or ("cuda" if torch.cuda.is_available() else OFFLINE_DEVICE,)]

    def plan(self, target: Target) -> Plan:
        """What may be spent on each problem of a device."""
        return efforts.plan_effort(
            self.effort,
            measures=target.measures,
            strategy=self.strategy,
            seed=self.seed,
            budget_seconds=self.budget_seconds,
            limit=self.limit,
        )


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `tune`, in the order in which its help lists them."""
    for option in reversed(
        (
            click.argument("model", type=_Model(), required=False),
            click.option(
                "--layer", "layers", multiple=True, help='A layer, "N=128 C=96 H=27 K=256 R=5 pad=2 groups=2".'
            ),
            click.option("--from-json", type=click.Path(path_type=Path), help="A file of problems."),
            click.option("--from-module", metavar="MODULE:FACTORY", help="Returns (model, example input)."),
            click.option(
                "--device",
                "devices",
                multiple=True,
                help="h100, sm_90, ... to predict; cuda or cuda:1 to measure. Default: the GPU here, else h100.",
            ),
            click.option(
                "--direction",
                type=click.Choice([*DIRECTIONS, "all"]),
                help="Default: forward; for --from-module what the model's mode implies.",
            ),
            click.option("--dtype", type=_Dtype(), default="fp16", show_default=True, help="fp16, bf16 or fp32."),
            click.option(
                "--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Images per batch."
            ),
            click.option("--effort", type=click.Choice(list(efforts.EFFORTS)), default="standard", show_default=True),
            click.option("--strategy", type=click.Choice(["exhaustive", "random", "model", "local"])),
            click.option("--limit", type=click.IntRange(min=1), help="Trials per layer instead of the effort's."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--budget-seconds", type=click.FloatRange(min=0), help="Begin no trial after so long."),
            click.option("--jobs", type=click.IntRange(min=1), help="Compile processes; by default one per core."),
            click.option("--dry-run", is_flag=True, help="Say what would be tried, and for how long."),
            click.option("--explain-space", is_flag=True, help="Count what is in the space, and what is not and why."),
            click.option("--json", "as_json", is_flag=True, help="JSON lines: each trial, then the result."),
        )
    ):
        command = option(command)
    return command


@click.command()
@_options
def tune(
    model: str | None,
    layers: tuple[str, ...],
    from_json: Path | None,
    from_module: str | None,
    devices: tuple[str, ...],
    direction: str | None,
    dtype: str,
    batch: int,
    dry_run: bool,
    explain_space: bool,
    **rest: Any,
) -> None:
    """Choose configurations for the convolutions of MODEL, or of other sources, and save them.

    On a GPU that is here they are measured. For a named one every configuration is compiled and judged by a cost model,
    and no time shown was measured.
    """
    from grouped_conv.autotune.store import default_store

    problems = _problems(model, layers, from_json, from_module, dtype, batch, direction)
    options = Options(devices, **rest)
    header = {"model": model, "dtype": dtype, "batch": batch} if model else {}
    store, targets = default_store(), options.targets()
    if explain_space:
        from grouped_conv.tune_preview import explained

        for target in targets:
            explained(problems, target.spec, options.as_json)
        return
    if dry_run:
        from grouped_conv.tune_preview import dry_run as preview

        for target in targets:
            preview(problems, target, options.plan(target), store, options.jobs, options.as_json)
        return
    interrupted = [_tune(problems, target, options, store, header) for target in targets]
    if any(interrupted):
        sys.exit(INTERRUPTED)


def _problems(
    model: str | None,
    layers: tuple[str, ...],
    from_json: Path | None,
    from_module: str | None,
    dtype: str,
    batch: int,
    direction: str | None,
) -> dict[str, ConvProblem]:
    from grouped_conv import tune_sources

    given = [bool(source) for source in (model, layers, from_json, from_module)]
    if sum(given) > 1:
        raise click.UsageError("give one of MODEL, --layer, --from-json and --from-module")
    if layers:
        return tune_sources.described_layers(layers, dtype, direction)
    if from_json:
        return tune_sources.listed_problems(from_json, direction)
    if from_module:
        return tune_sources.from_factory(from_module, direction)
    if model is None:
        raise click.UsageError("Missing argument 'MODEL' (or --layer, --from-json, --from-module)")
    return tune_sources.named_model(model, batch, dtype, direction)


def _tune(
    problems: dict[str, ConvProblem], target: Target, options: Options, store: Store, header: dict[str, Any]
) -> bool:
    """Tune for one device and print what was found; True when Ctrl-C ended it."""
    from grouped_conv.autotune.tuner import frame_of
    from grouped_conv.tuning import tune_on

    lines = options.as_json and not sys.stdout.isatty()
    verb = "measuring on" if target.measures else "compiling for"
    try:
        with nullcontext(json_lines) if lines else progress_bar(f"{verb} {target.spec.key}") as report:
            tuned = tune_on(target, problems, store, options.plan(target), report, options.jobs)
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
        click.echo(json.dumps({**whole, "interrupted": tuned.interrupted}, allow_nan=False))
        return tuned.interrupted
    model = f"{header['model']}, batch {header['batch']}, {header['dtype']}, " if header else ""
    tables.print_tuned(f"{model}on {target.spec.name}", rows)
    click.echo(f"Saved as {times.partition(',')[0]} in {store.path}")
    if tuned.interrupted:
        click.echo("Stopped early; the same command goes on from here.", err=True)
    return tuned.interrupted


@click.command()
@click.option("--device", default=None, help="cuda, cuda:1, ...; default: the current GPU.")
@click.option("--family", "families", multiple=True, help="Only this kernel family; by default all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify(device: str | None, families: tuple[str, ...], as_json: bool) -> None:
    """Check every kernel family on this machine's device: small odd problems against float64, and keep the outcome.

    Kernels of a family whose check failed are not used. Exit code 1 when one did.
    """
    from grouped_conv.autotune import self_check
    from grouped_conv.autotune.store import default_store
    from grouped_conv.tuning import target_of

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
