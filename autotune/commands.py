"""The `tune` and `show` sub-commands of `grouped-conv`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from grouped_conv.autotune import tables
from grouped_conv.autotune.workloads import MODELS, workload
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import dtype_name

if TYPE_CHECKING:
    from grouped_conv.autotune.tuner import Event

DEFAULT_DEVICE = "h100"


class _Device(click.ParamType):
    """A name `DeviceSpec.get` knows."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DeviceSpec:
        if isinstance(value, DeviceSpec):
            return value
        try:
            return DeviceSpec.get(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


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


@click.command()
@click.argument("model", type=_Model())
@click.option(
    "--device", type=_Device(), default=DEFAULT_DEVICE, show_default=True, help="GPU to tune for; none is needed."
)
@click.option("--dtype", type=_Dtype(), default="fp16", show_default=True, help="fp16, bf16 or fp32.")
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Images per batch.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Configurations to compile per layer.")
@click.option("--jobs", type=click.IntRange(min=1), default=None, help="Compile processes; by default one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def tune(
    model: str, device: DeviceSpec, dtype: str, batch: int, limit: int | None, jobs: int | None, as_json: bool
) -> None:
    """Choose configurations for the convolutions of MODEL without a GPU, and save them as predicted.

    Every configuration is compiled for the device and judged by a cost model. No time shown here was measured.
    """
    from grouped_conv.autotune.store import default_store
    from grouped_conv.autotune.tuner import tune_offline

    problems = workload(model, batch, dtype)
    store = default_store()
    try:
        with _progress(f"{model} on {device.key}") as progress:
            frame = tune_offline(problems, device, jobs=jobs, progress=progress, store=store, limit=limit)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    rows = [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
    if as_json:
        header = {"model": model, "device": device.key, "dtype": dtype, "batch": batch, "store": str(store.path)}
        tables.print_json({**header, "times": "predicted, not measured", "layers": rows})
        return
    tables.print_tuned(f"{model}, batch {batch}, {dtype}, on {device.name}", rows)
    click.echo(f"Saved as predicted in {store.path}")


@click.command()
@click.option("--device", type=_Device(), default=None, help="Only rows of this GPU.")
@click.option("--all", "everything", is_flag=True, help="Every configuration tried, not only the best of each problem.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def show(device: DeviceSpec | None, everything: bool, as_json: bool) -> None:
    """List what the store holds: the chosen configuration of each problem, and whether its time was measured."""
    from grouped_conv.autotune.ranking import pick
    from grouped_conv.autotune.store import default_store

    store = default_store()
    records = store.trials(device_key=device.key if device else None)
    if not everything:
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for record in records:
            groups.setdefault((record.device, record.problem, record.abi, record.triton), []).append(record)
        records = [best for best in map(pick, groups.values()) if best is not None]
    if as_json:
        tables.print_json({"store": str(store.path), "rows": [record.to_json() for record in records]})
    elif records:
        tables.print_records(str(store.path), records)
    else:
        click.echo(f"{store.path} holds no rows; `grouped-conv tune alexnet` makes some")


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    """A progress bar on stderr while something is compiled; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"compiling {title}", total=None, last="", visible=False)

        def report(event: Event) -> None:
            last = f"{event.name} {event.record.config}" if event.record else ""
            bar.update(task, completed=event.done, total=event.total, last=last, visible=event.total > 0)

        yield report
