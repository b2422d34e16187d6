"""The `export` sub-command of `grouped-conv`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from grouped_conv.autotune.report import tables


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON; with - the export is JSON anyway.")
def export_records(file: str, as_json: bool) -> None:
    """Write the store's records to FILE as JSON lines, or to stdout for -; the same bytes for the same records.

    A FILE that exists is replaced once everything is written.
    """
    from grouped_conv.autotune.store.exchange import dumps
    from grouped_conv.autotune.store.store import default_store

    store = default_store()
    text = dumps(store.trials())
    if file == "-":
        click.echo(text, nl=False)
        return
    _replace(Path(file), text)
    count = text.count("\n") - 1
    if as_json:
        tables.print_json({"store": str(store.path), "file": file, "records": count})
    else:
        click.echo(f"{count} records of {store.path} in {file}")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
