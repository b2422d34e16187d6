"""How good the cost model is, judged only by data it did not produce: `python -m grouped_conv.bench.model_quality`.

The model's predictions before compilation are compared on A100 and H100:

- With NVIDIA's estimator, on a table of plain and batched GEMMs (`gemm_shapes`): our predicted time of our choice and
  its estimate of its best proposal. It is an estimate, too. Its targets answer 163, 269, 295 (Triton) and 328 us for
  4096x4096x4096 on H100; its times for the published rows are printed as well. Look for agreement in rank.
- With the same estimator, on configurations of one shape: does it order its proposals as we do, and how does it rate
  our choice? What our model says about our own choice is called self-consistency; it proves nothing.
- With published measurements (`published_matmul`).

Where the output shows that the model must not be trusted, in short:

- Times below about 20 us: measured times are up to 2.5 times longer, of which events and a cold L2 take 3 to 5 us.
- Bound by memory (thin m, n or k): NVIDIA expects 2 to 3 times our time, and up to 6 times with deep splits of k. We
  found no measurement; take our time as what a perfect kernel would need.
- The order of tiles of one shape: the median of Kendall's tau with NVIDIA's order is 0.3 to 0.5, and by its estimate a
  tenth of our choices take 1.7 times its best time. Compile and measure the first few, never the first alone.
- H100: our times for squares from 2176 up are 0.9 to 1.4 times those of cuBLAS; Triton of 2023 took 1.6 times our time.
- Rows that no wide load divides, and everything that nobody else published figures for: taps, strides, groups thinner
  than 16 channels or of unequal sizes, gradients, AMD, every other NVIDIA GPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import click

from grouped_conv.bench.model_truth.agreement import is_far, percentile
from grouped_conv.bench.model_truth.nv_estimator import GPUS, Estimator, NvEstimator
from grouped_conv.bench.model_truth.quality import SMALL_US, Report, report, rows_agreement
from grouped_conv.kernels.values.device import DeviceSpec


def lines(found: Report) -> list[str]:
    """The report as text."""
    out = [f"{found.device}: cost model {found.model} (predictions), before compiling"]
    if found.rows:
        out += _estimator_lines(found)
    else:
        out.append("  not compared with nvMatmulHeuristics: pip install 'grouped-conv[estimate]'")
    for column in found.columns:
        out += [f"  measured: {column.what}", f"    {column.url}"]
        for name, part in (
            ("all", column.whole),
            ("with the protocol's time", column.beyond_protocol),
            (f"from {SMALL_US:g} us", column.large),
            ("the estimator, all", column.estimator),
        ):
            if part:
                out.append(f"    {name:25}{part}")
        far = f"; not to be trusted up to {column.far_us:.1f} us" if column.far_us else ""
        out.append(f"    furthest off: {column.worst[0]}, ratio {column.worst[1]:.2f}{far}")
    return out


def _estimator_lines(found: Report) -> list[str]:
    out = [f"  {found.estimator}: our choice's predicted time against the best estimate"]
    for kind in ("", *dict.fromkeys(row.kind for row in found.rows)):
        part = rows_agreement([row for row in found.rows if kind in ("", row.kind)])
        if part and part.pairs > 2:
            out.append(f"    {kind or 'all':12}{part}")
    taus = sorted(row.tau for row in found.rows if row.tau is not None)
    regrets = sorted(row.regret for row in found.rows if row.regret is not None)
    own = sorted(row.own_regret for row in found.rows if row.own_regret is not None)
    first = sum(regret < 1.05 for regret in regrets)
    out += [
        f"    proposals our space has: {sum(row.held for row in found.rows)}; Kendall of their order,"
        f" {len(taus)} shapes: median {percentile(taus, 0.5):.2f} ({_spread(taus)})",
        f"    regret, their estimate of our choice / of their best, {len(regrets)} shapes: median"
        f" {percentile(regrets, 0.5):.2f} ({_spread(regrets)}); within 5 %: {first}",
        f"    self-consistency, our prediction of their first proposal / of our choice, {len(own)} shapes: median"
        f" {percentile(own, 0.5):.2f} ({_spread(own)})",
        "    do not trust the time (off by more than 2x):",
    ]
    for row in sorted(found.rows, key=lambda row: row.ratio):
        if is_far(row.ratio):
            out.append(
                f"      {row.ratio:5.2f}  {row.shape:22}{row.us:8.1f} us by {row.bound:8}{row.theirs_us:8.1f} us;"
                f" {row.choice} | {row.proposal}"
            )
    return out


def _spread(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.1):.2f} to {percentile(values, 0.9):.2f}"


def _json(found: Report) -> dict[str, Any]:
    rows = [asdict(row) | {"ratio": row.ratio} for row in found.rows]
    whole = rows_agreement(found.rows)
    return asdict(found) | {"rows": rows, "agreement": asdict(whole) if whole else None}


@click.command()
@click.option("--device", "names", multiple=True, help=f"{' or '.join(GPUS)}; both by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def main(names: tuple[str, ...], as_json: bool) -> None:
    """Compare the cost model with NVIDIA's estimator and with published measurements."""
    if find_spec("scipy") is None:
        raise click.UsageError("the rank correlations need scipy: pip install 'grouped-conv[estimate]'")
    reports = []
    for name in names or tuple(GPUS):
        try:
            device = DeviceSpec.get(name)
            estimator: Estimator | None = NvEstimator(device)
        except ImportError:
            estimator = None
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        reports.append(report(device, estimator))
    if as_json:
        click.echo(json.dumps([_json(found) for found in reports], indent=2))
        return
    for found in reports:
        click.echo("\n".join(lines(found)))


if __name__ == "__main__":
    main()
