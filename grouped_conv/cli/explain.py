"""The `explain` sub-command: what runs, from where, what bounds it, and what lost to it."""

from __future__ import annotations

import click

from grouped_conv.autotune.lookup.resolve import POLICIES
from grouped_conv.autotune.report import tables
from grouped_conv.cli.problem_options import Source, source_options


@click.command()
@source_options
@click.option("--device", default=None, help="h100, sm_90, ... or cuda:1. Default: the GPU here, else h100.")
@click.option("--policy", type=click.Choice(POLICIES), default="measured", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def explain(device: str | None, policy: str, as_json: bool, source: Source) -> None:
    """Say which kernel each convolution of MODEL, or of another source, runs with, and why.

    Nothing is tuned, compiled or timed here; times that were not measured are called predicted.
    """
    import torch

    from grouped_conv.cli.tune import OFFLINE_DEVICE
    from grouped_conv.preparing.explaining import explain as explain_all

    place = device or ("cuda" if torch.cuda.is_available() else OFFLINE_DEVICE)
    found = explain_all(source.problems(), device=place, policy=policy)
    if as_json:
        tables.print_json({name: one.to_json() for name, one in found.items()})
        return
    click.echo("\n\n".join(f"{name}: {one}" for name, one in found.items()))
