"""Exact gate on compiled code, without a GPU: every kernel family at its defaults, per architecture.

`python -m grouped_conv.bench.static_gate` prints what it finds and exits with 1 if any code is worse than its limits.
The module of a family in `bench/gates` says what it must satisfy.
"""

from __future__ import annotations

import json

import click

from grouped_conv.bench.gates.families import GATES, findings
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP


@click.command()
@click.option("--arch", "archs", multiple=True, help="sm_80, gfx942, ...; may be given more than once.")
@click.option("--family", "families", multiple=True, type=click.Choice(list(GATES)), help="Only these families.")
@click.option("--all", "everything", is_flag=True, help="Also the architectures of the sweep.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(archs: tuple[str, ...], families: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Compile every family's layers at their defaults and judge the code; exit code 1 on a fault."""
    chosen = archs or (EVERY_RUN + SWEEP if everything else EVERY_RUN)
    found = []
    for family in families or GATES:
        for finding in findings(family, chosen):
            found.append(finding)
            if not as_json:
                click.echo(str(finding))
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in found], indent=2))
    faulty = sum(bool(finding.faults) for finding in found)
    click.echo(f"{len(found)} kernels compiled, {faulty} with faults", err=True)
    raise SystemExit(1 if faulty else 0)


if __name__ == "__main__":
    main()
