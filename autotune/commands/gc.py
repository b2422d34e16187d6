"""The `gc` sub-command of `grouped-conv`."""

from __future__ import annotations

import click

from grouped_conv.autotune.report import tables


@click.command("gc")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Also drop trials older than DAYS.")
@click.option("--dry-run", is_flag=True, help="Only say what would be dropped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a line.")
def collect(older_than: float | None, dry_run: bool, as_json: bool) -> None:
    """Drop what this version cannot use, trials of another kernel ABI or Triton, and give the room back.

    Another environment that shares the store with another Triton loses its trials: try --dry-run first.
    """
    from grouped_conv.autotune.store.store import default_store

    store = default_store()
    done = store.collect(older_than, dry_run=dry_run)
    if as_json:
        counts = {"trials": done.trials, "self_checks": done.self_checks, "bytes_freed": done.bytes_freed}
        tables.print_json({"store": str(store.path), "dry_run": dry_run, **counts, "bytes": done.bytes_after})
        return
    verb = "would drop" if dry_run else "dropped"
    rows = f"{done.trials} trials and {done.self_checks} self-checks"
    click.echo(f"{verb} {rows} of {store.path}: {done.bytes_freed} bytes freed, {done.bytes_after} left")
