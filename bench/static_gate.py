"""Exact gate on compiled code, without a GPU: every kernel family at its defaults, per architecture.

`python -m grouped_conv.bench.static_gate` prints what was found and exits with 1 if anything is worse than it may be.
What each family is held to is said in its `<family>_gate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import click

from grouped_conv.bench.gates import depthwise as depthwise_gate
from grouped_conv.bench.gates import depthwise_gradients as depthwise_grad_gate
from grouped_conv.bench.gates import implicit_gemm as implicit_gemm_gate
from grouped_conv.bench.gates import implicit_gemm_gradients as gemm_gradient_gate
from grouped_conv.bench.gates import lrn_pool as lrn_pool_gate
from grouped_conv.bench.gates import packed as packed_groups_gate
from grouped_conv.bench.gates import packed_gradients as packed_grad_gate
from grouped_conv.bench.gates import ragged as ragged_gate
from grouped_conv.bench.gates import ragged_gradients as ragged_grad_gate
from grouped_conv.bench.gates import separable as separable_gate
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP, Finding

GATES: dict[str, Callable[[Sequence[str]], Iterator[Finding]]] = {
    "implicit_gemm": implicit_gemm_gate.findings,
    "packed_groups": packed_groups_gate.findings,
    "packed_grad": packed_grad_gate.findings,
    "depthwise": depthwise_gate.findings,
    "depthwise_gradients": depthwise_grad_gate.findings,
    "ragged": ragged_gate.findings,
    "ragged_grad": ragged_grad_gate.findings,
    "separable": separable_gate.findings,
    "lrn_pool": lrn_pool_gate.findings,
    "gemm_gradients": gemm_gradient_gate.findings,
}
"""By family: architectures to findings."""


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
        for finding in GATES[family](chosen):
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
