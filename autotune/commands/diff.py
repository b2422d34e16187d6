"""The `diff` sub-command of `grouped-conv`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grouped_conv.autotune.report import tables

if TYPE_CHECKING:
    from grouped_conv.autotune.records.record import Record

_FILE = click.Path(exists=True, dir_okay=False)


@click.command("diff")
@click.argument("one", type=_FILE)
@click.argument("other", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_context
def diff_records(ctx: click.Context, one: str, other: str, as_json: bool) -> None:
    """Say where the winners of two stores or exports differ: a problem only in one, another configuration or time.

    Exits with 1 when something differs, as diff does.
    """
    from grouped_conv.autotune.store.exchange import read_file
    from grouped_conv.autotune.store.merging import diff

    found = diff(read_file(one), read_file(other))
    if as_json:
        rows = [
            {
                "kind": difference.kind,
                "one": None if difference.one is None else difference.one.to_json(),
                "other": None if difference.other is None else difference.other.to_json(),
            }
            for difference in found
        ]
        tables.print_json({"one": one, "other": other, "differences": rows})
    else:
        names = {"only in one": f"only in {one}", "only in the other": f"only in {other}"}
        for difference in found:
            record = difference.record
            versions = f"ABI {record.abi}, Triton {record.triton}"
            click.echo(f"{record.device} {record.problem} ({versions})")
            pair = [words for words in (_words(difference.one), _words(difference.other)) if words]
            click.echo(f"  {names.get(difference.kind, difference.kind)}: {' | '.join(pair)}")
        click.echo(f"{len(found)} differences")
    ctx.exit(1 if found else 0)


def _words(record: Record | None) -> str:
    if record is None:
        return ""
    time = record.measured_us if record.measured_us is not None else record.predicted_us
    return f"{record.config} {record.source} {time:.1f} us"
