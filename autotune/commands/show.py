"""The `show` sub-command of `grouped-conv`."""

from __future__ import annotations

from typing import Any

import click

from grouped_conv.autotune.report import tables
from grouped_conv.kernels.values.device import DeviceSpec


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


@click.command()
@click.option("--device", type=_Device(), default=None, help="Only rows of this GPU.")
@click.option("--all", "everything", is_flag=True, help="Every configuration tried, not only the best of each problem.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def show(device: DeviceSpec | None, everything: bool, as_json: bool) -> None:
    """List what the store holds: the chosen configuration of each problem, and whether its time was measured."""
    from grouped_conv.autotune.records.ranking import pick
    from grouped_conv.autotune.store.store import default_store

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
