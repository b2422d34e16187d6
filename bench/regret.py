"""How good each search strategy is after a number of trials, judged on a recorded exhaustive sweep; needs no GPU.

    python -m grouped_conv.bench.regret FILE [--plot FILE.png] [--json]

Regret is the best time so far divided by the best time of the sweep: 1 is perfect.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import click

from grouped_conv.autotune.search.recording import Recording, Sweep
from grouped_conv.autotune.search.search_space import ranked
from grouped_conv.autotune.search.strategies import STRATEGIES, make_strategy
from grouped_conv.kernels.values.device import DeviceSpec

SEEDS = 20
"""Repetitions of a strategy that draws at random; the other strategies always do the same."""
CHECKPOINTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def regret_curve(sweep: Sweep, device: DeviceSpec, strategy: str, seed: int = 0) -> list[float]:
    """The regret after each trial; infinite as long as all trials have failed."""
    searcher = make_strategy(strategy, ranked(sweep.problem, device, sweep.outcomes), seed)
    best = math.inf
    curve: list[float] = []
    while len(curve) < len(sweep.outcomes):
        proposed = searcher.ask(len(sweep.outcomes) - len(curve))
        if not proposed:
            break
        for config in proposed:
            us = sweep.outcomes[config].us
            searcher.tell(config, us)
            best = min(best, math.inf if us is None else us)
            curve.append(best / sweep.best_us)
    return curve


def curves(sweep: Sweep, device: DeviceSpec) -> dict[str, list[float]]:
    """The curve of each strategy; for random draws, the median over seeds."""
    found = {}
    for name in STRATEGIES:
        if name != "random":
            found[name] = regret_curve(sweep, device, name)
            continue
        runs = [regret_curve(sweep, device, name, seed) for seed in range(SEEDS)]
        found[name] = [statistics.median(values) for values in zip(*runs, strict=True)]
    return found


def checkpoints(length: int) -> list[int]:
    """Numbers of trials that a table shows: powers of two, and the number of all trials."""
    return [*(count for count in CHECKPOINTS if count < length), length]


def trials_until(curve: list[float], limit: float) -> int | None:
    """Trials until the regret is at most `limit`; None when it never is."""
    return next((count for count, value in enumerate(curve, 1) if value <= limit), None)


def _as_json(recording: Recording, found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    layers = {
        name: {
            strategy: {
                "regret": [None if math.isinf(value) else round(value, 4) for value in curve],
                "trials_to_5_percent": trials_until(curve, 1.05),
            }
            for strategy, curve in by_strategy.items()
        }
        for name, by_strategy in found.items()
    }
    return {
        "device": recording.device.key,
        "times": recording.times,
        "protocol": recording.protocol,
        "layers": layers,
    }


def title(recording: Recording) -> str:
    """Says whether times were measured. If they were predicted, the model that ranks is also the judge."""
    if recording.times == "predicted":
        return f"Predicted for {recording.device.key}, no GPU was used: the model's agreement with itself"
    return f"Measured on {recording.device.key}"


def _print_table(sweep: Sweep, found: dict[str, list[float]]) -> None:
    length = len(sweep.outcomes)
    failed = sum(outcome.us is None for outcome in sweep.outcomes.values())
    click.echo(f"{sweep.name}: {length} configurations, {failed} failed, best {sweep.best_us:.1f} us")
    counts = checkpoints(length)
    click.echo("  after trials ".ljust(16) + "".join(f"{count:>8d}" for count in counts) + "   to 5 %")
    for name, curve in found.items():
        cells = [f"{curve[count - 1]:8.3f}" if count <= len(curve) else " " * 8 for count in counts]
        until = trials_until(curve, 1.05)
        click.echo(f"  {name:<14}" + "".join(cells) + f"{until if until else '-':>9}")


def _plot(found: dict[str, dict[str, list[float]]], path: Path, heading: str) -> None:
    """One panel per layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(found), 4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (layer, by_strategy) in zip(panels, found.items(), strict=True):
        for name, curve in by_strategy.items():
            panel.step(range(1, len(curve) + 1), curve, where="post", label=name)
        panel.set(title=layer, xlabel="trials", ylabel="best so far / best", xscale="log", yscale="log")
        panel.legend()
    figure.suptitle(heading)
    figure.savefig(path)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the curves (extra: plot).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(file: Path, plot: Path | None, as_json: bool) -> None:
    """Print how fast each search strategy gets near the best configuration of the recorded sweep in FILE."""
    try:
        recording = Recording.load(file)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    found = {sweep.name: curves(sweep, recording.device) for sweep in recording.sweeps}
    if as_json:
        click.echo(json.dumps(_as_json(recording, found), indent=2, allow_nan=False))
    else:
        click.echo(f"{title(recording)} ({recording.protocol})")
        for sweep in recording.sweeps:
            _print_table(sweep, found[sweep.name])
    if plot is not None:
        _plot(found, plot, title(recording))
        click.echo(f"Drawn in {plot}", err=True)


if __name__ == "__main__":
    sys.exit(main())
