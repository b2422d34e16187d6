"""`tune`: find the best configuration of each convolution of a model on a device, by measuring or by predicting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.measuring.self_check import check_kernels
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.search.efforts import Plan, plan_effort
from grouped_conv.autotune.search.predicted_runner import PredictedRunner
from grouped_conv.autotune.search.progress import progress_bar, trial_json
from grouped_conv.autotune.search.runner import Runner
from grouped_conv.autotune.search.tuner import Progress, Tuned, frame_of, tune_with
from grouped_conv.autotune.store.store import Store, default_store
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.live_device import live_device
from grouped_conv.preparing.traced_problems import problems_of

if TYPE_CHECKING:
    import pandas

Problems = nn.Module | ConvProblem | Mapping[str, ConvProblem] | Sequence[ConvProblem]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to tune.

    Attributes:
        spec: the device.
        index: number of the CUDA device to measure on; None where nothing is measured, -1 for the native lane.
    """

    spec: DeviceSpec
    index: int | None = None

    @property
    def measures(self) -> bool:
        """Whether the device is there."""
        return self.index is not None

    def runner(self, jobs: int | None) -> Runner:
        """A runner for the device, to be opened."""
        if self.index is None:
            return PredictedRunner(self.spec, jobs)
        return LiveRunner(self.spec, self.index, jobs=jobs)


def target_of(device: Any, example_input: Any = None) -> Target:
    """The device that `tune` means.

    Args:
        device: a `DeviceSpec`, or a name `DeviceSpec.get` knows, for predictions, but where the current GPU is of that
            model it is measured; a CUDA device as torch names it, or `cpu-native`, for measurements; None for the GPU
            of `example_input` or the current one.

    Raises:
        ValueError: for an unknown name, a GPU of an architecture without kernels, or without any GPU.
    """
    if isinstance(device, DeviceSpec):
        return Target(device)
    if device == native_lane.KEY:
        return Target(native_lane.DEVICE, -1)
    if device is None:
        tensors = example_input if isinstance(example_input, tuple) else (example_input,)
        placed = [value.device for value in tensors if isinstance(value, torch.Tensor) and value.is_cuda]
        if not placed and not torch.cuda.is_available():
            raise ValueError(
                "no GPU is here to measure on; name one to predict for, such as device='h100' (known: "
                f"{', '.join(spec.key for spec in DeviceSpec.all())})"
            )
        device = placed[0] if placed else torch.device("cuda")
    if isinstance(device, str) and device.partition(":")[0] != "cuda":
        spec = DeviceSpec.get(device)
        here = live_device(torch.cuda.current_device()) if torch.cuda.is_available() else None
        if here is None or here.key != spec.key:
            return Target(spec)
        device = torch.device("cuda")
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"device {str(place)!r} is no GPU of this machine")
    index = torch.cuda.current_device() if place.index is None else place.index
    found = live_device(index)
    if found is None:
        raise ValueError(f"the kernels do not know the architecture of {torch.cuda.get_device_name(index)}")
    return Target(found, index)


def named_problems(
    given: Problems, example_input: Any = None, directions: Sequence[str] | None = None
) -> dict[str, ConvProblem]:
    """What `tune` is given, as problems by name.

    Raises:
        ValueError: for a model without an example input, or with no convolution in it.
    """
    from grouped_conv.autotune.workloads.named import in_directions

    if isinstance(given, nn.Module):
        if example_input is None:
            raise ValueError("a model is tuned for the shapes of one input: give example_input")
        return problems_of(given, example_input, directions)
    if isinstance(given, ConvProblem):
        given = [given]
    if not isinstance(given, Mapping):
        given = {f"problem {number}": problem for number, problem in enumerate(given, 1)}
    return in_directions(given, directions) if directions is not None else dict(given)


def tune(
    model_or_problems: Problems,
    example_input: Any = None,
    *,
    device: Any = None,
    effort: str = "standard",
    directions: Sequence[str] | None = None,
    budget_seconds: float | None = None,
    seed: int = 0,
    store: Store | str | Path | None = None,
    progress: bool | Progress = True,
    all_trials: bool = False,
    resume: bool = True,
) -> pandas.DataFrame:
    """Find a configuration for every convolution of a model and keep it in the store, where `forward` looks it up.

    On a GPU of this machine, configurations are verified against float64 and timed against PyTorch's own convolution,
    and the families that win get their self-check. For a named GPU they are compiled and predicted.

    Args:
        model_or_problems: a model, a problem, or several.
        example_input: what the model is called with; a tuple holds several arguments.
        device: see `target_of`; by default the GPU of the input, else the current one.
        effort: `none`, `quick`, `standard`, `full` or `exhaustive`: 0, 16, 64, 256 or all trials per problem.
        directions: of `forward`, `input_grad`, `weight_grad`; by default what the model's mode implies.
        budget_seconds: wall time after which no trial is begun.
        seed: of everything random.
        store: the tuning store or its file; by default `settings.store_path()`.
        progress: a bar on a terminal, none, or a function of each `tuner.Event`.
        all_trials: one row per trial instead of one per problem.
        resume: go on from the trials in the store; False runs them again, but for those that took their process down.

    Returns:
        One row per problem, times in microseconds; `attrs["interrupted"]` is True after Ctrl-C.

    Raises:
        ValueError: for arguments that make no sense, with what would be accepted.
        RuntimeError: when every configuration of a problem failed.
        StoreError: when the store cannot be written.
    """
    target = target_of(device, example_input)
    plan = plan_effort(effort, measures=target.measures, seed=seed, budget_seconds=budget_seconds, resume=resume)
    problems = named_problems(model_or_problems, example_input, directions)
    where = default_store() if store is None else store if isinstance(store, Store) else Store(store)
    with _reporting(progress, target) as report:
        tuned = tune_on(target, problems, where, plan, report)
    return trials_frame(tuned) if all_trials else frame_of([tuned])


def tune_on(
    target: Target,
    problems: Mapping[str, ConvProblem],
    store: Store,
    plan: Plan,
    progress: Progress | None,
    jobs: int | None = None,
) -> Tuned:
    """Tune for one device; where it is measured, check the families that won and were never checked there.

    Ctrl-C ends either in good order.
    """
    spec = target.spec
    if spec.key == native_lane.KEY:
        problems = {name: native_lane.as_computed(problem) for name, problem in problems.items()}
    with target.runner(jobs) as runner:
        tuned = tune_with(runner, problems, spec, store, plan, progress)
        if isinstance(runner, LiveRunner) and not tuned.interrupted:
            winners = [best for search in tuned.searches if (best := search.best()) is not None]
            pairs = dict.fromkeys((best.config.family, best.config.direction) for best in winners)
            known = store.self_checks(spec.key)
            try:
                check_kernels(spec, store, [pair for pair in pairs if pair not in known], runner=runner)
            except KeyboardInterrupt:
                tuned = replace(tuned, interrupted=True)
    return tuned


def trials_frame(tuned: Tuned) -> pandas.DataFrame:
    """One row per trial of every problem."""
    import pandas

    rows = [
        {"layer": search.name, **trial_json(record)} for search in tuned.searches for record in search.rows.values()
    ]
    frame = pandas.DataFrame(rows)
    frame.attrs["interrupted"] = tuned.interrupted
    return frame


@contextmanager
def _reporting(progress: bool | Progress, target: Target) -> Iterator[Progress | None]:
    with ExitStack() as stack:
        if callable(progress):
            yield progress
            return
        verb = "measuring on" if target.measures else "compiling for"
        yield stack.enter_context(progress_bar(f"{verb} {target.spec.key}") if progress else nullcontext())
