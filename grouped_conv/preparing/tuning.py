"""`tune`: find the best configuration of each convolution of a model on a device, by measuring or by predicting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.progress import progress_bar, trial_json
from grouped_conv.autotune.search.tuned_table import Tuned, frame_of
from grouped_conv.autotune.search.tuner import Progress
from grouped_conv.autotune.store.store import Store, default_store
from grouped_conv.autotune.workloads.named import in_directions
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.preparing.targets import Target, target_of, tune_on
from grouped_conv.preparing.traced_problems import problems_of

if TYPE_CHECKING:
    import pandas

Problems = nn.Module | ConvProblem | Mapping[str, ConvProblem] | Sequence[ConvProblem]


def named_problems(
    given: Problems, example_input: Any = None, directions: Sequence[str] | None = None
) -> dict[str, ConvProblem]:
    """What `tune` is given, as problems by name.

    Raises:
        ValueError: for a model without an example input, or with no convolution in it.
    """
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
        device: a CUDA device to measure on, or a name such as `h100` or a `DeviceSpec` to predict for; by default the
            GPU of the input, else the current one.
        effort: `none`, `quick`, `standard`, `full` or `exhaustive`: 0, 16, 64, 256 or all trials per problem.
        directions: any of `forward`, `input_grad`, `weight_grad`; by default `forward`, and gradients when training.
        budget_seconds: wall time after which no new trial starts.
        seed: for all random choices.
        store: the tuning store or its file; by default `settings.store_path()`.
        progress: whether to show a progress bar, or a function that is called with each event.
        all_trials: one row per trial instead of one per problem.
        resume: continue from the trials in the store. False repeats them, except those that took their process down.

    Returns:
        One row per problem, times in microseconds; `attrs["interrupted"]` is True after Ctrl-C.

    Raises:
        ValueError: for invalid arguments, naming what is accepted.
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
