"""How close the configurations ranked first come to the best of an exhaustive search, without a GPU.

    python -m grouped_conv.bench.self_consistency [--device h100] [--jobs 2] [--save FILE.json] [--json]

Every configuration of six problems is compiled and predicted again from its compiled code. The best of the first 16
that the model ranks before compilation is compared with the best of all. Both predictions are by the same model, so
this shows what ranking before compilation loses to ranking after it, not whether either is right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from platformdirs import user_cache_path

from grouped_conv.autotune.search.progress import progress_bar
from grouped_conv.autotune.search.recording import Recording
from grouped_conv.autotune.search.tuner import tune_offline
from grouped_conv.autotune.store.store import Store
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.regret import regret_curve, title
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

FIRST = 16
GOAL, GOAL_PROBLEMS = 1.05, 5
"""The best of the first 16 should be within 5 % of the best of all on 5 of the 6 problems."""


def problems() -> dict[str, ConvProblem]:
    """AlexNet's grouped layers, thin groups and a depthwise layer at batch 128 in fp16, forward and gradients."""
    conv2, conv4 = (workload("alexnet")[name] for name in ("conv2", "conv4"))
    thin = ConvProblem.of((128, 128, 56, 56), (128, 4, 3, 3), padding=1, groups=32)
    depthwise = ConvProblem.of((128, 144, 56, 56), (144, 1, 3, 3), padding=1, groups=144)
    return {
        "conv2": conv2,
        "conv2 weight_grad": gradient_problem(conv2, "weight_grad"),
        "conv4 input_grad": gradient_problem(conv4, "input_grad"),
        "conv4 weight_grad": gradient_problem(conv4, "weight_grad"),
        "32 groups of 4, input_grad": gradient_problem(thin, "input_grad"),
        "depthwise, input_grad": gradient_problem(depthwise, "input_grad"),
    }


def regrets(recording: Recording, first: int = FIRST) -> dict[str, float]:
    """By problem, the best time of the model's first configurations divided by the best of all, from compiled code."""
    return {
        sweep.name: regret_curve(sweep, recording.device, "model")[: min(first, len(sweep.outcomes))][-1]
        for sweep in recording.sweeps
    }


def sweep(
    device: DeviceSpec, chosen: Mapping[str, ConvProblem], store: Store, jobs: int | None, limit: int | None = None
) -> Recording:
    """Search all problems exhaustively or up to `limit` configurations; trials in the store are not compiled again."""
    with progress_bar(f"Compiling for {device.key}") as report:
        tune_offline(chosen, device, jobs=jobs, progress=report, store=store, effort="exhaustive", limit=limit)
    records = [record for problem in chosen.values() for record in store.trials(problem, device.key)]
    return Recording.of(device, chosen, records, "predicted")


@click.command()
@click.option("--device", "key", default="h100", show_default=True, help="Device to compile for and predict.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Worker processes; by default as many as cores and memory allow."
)
@click.option("--store", type=click.Path(path_type=Path), help="Where trials are kept; by default in the user's cache.")
@click.option("--save", type=click.Path(path_type=Path), help="Write the sweep for `bench.regret`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(key: str, jobs: int | None, store: Path | None, save: Path | None, as_json: bool) -> None:
    """Compile everything (about 1,400 kernels, half an hour on two cores) and print the regret of the first 16."""
    try:
        device = DeviceSpec.get(key)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    path = store or user_cache_path("grouped-conv") / "self-consistency.sqlite3"
    path.parent.mkdir(parents=True, exist_ok=True)
    recording = sweep(device, problems(), Store(path), jobs)
    if save is not None:
        recording.save(save)
    found = regrets(recording)
    within = sum(value <= GOAL for value in found.values())
    if as_json:
        click.echo(json.dumps({"device": device.key, "times": "predicted", "first": FIRST, "regret": found}))
        return
    click.echo(f"{title(recording)} ({recording.protocol})")
    for one in recording.sweeps:
        failed = sum(outcome.us is None for outcome in one.outcomes.values())
        click.echo(
            f"  {one.name:<28}{len(one.outcomes):5d} configurations, {failed:3d} failed, best {one.best_us:8.1f} us, "
            f"first {FIRST} within {found[one.name] - 1:6.1%}"
        )
    click.echo(f"{within} of {len(found)} problems within {GOAL - 1:.0%} (goal: {GOAL_PROBLEMS})")


if __name__ == "__main__":
    sys.exit(main())
