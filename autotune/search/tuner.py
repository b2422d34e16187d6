"""The tuner: strategy x runner x store. Asks each problem's strategy, lets the runner try, writes every outcome down.

Only trials without a settled row are run, so a search that was interrupted goes on and a finished one costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.search.efforts import Plan, plan_effort
from grouped_conv.autotune.search.predicted_runner import PredictedRunner
from grouped_conv.autotune.search.runner import Outcome, Runner, Trial
from grouped_conv.autotune.search.search import Search
from grouped_conv.autotune.search.tuned_table import Tuned, frame_of
from grouped_conv.autotune.store.store import Store, default_store
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Event:
    """What a search reports while it goes on.

    Attributes:
        done, total: trials finished and trials expected, over all problems.
        name: the problem's name; empty for the report that opens a batch.
        record: the row of the trial that has just ended, None at the opening.
    """

    done: int
    total: int
    name: str = ""
    record: Record | None = None


Progress = Callable[[Event], None]


def tune_with(
    runner: Runner,
    problems: Mapping[str, ConvProblem],
    device: DeviceSpec,
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
) -> Tuned:
    """Search every problem with a runner that is open; see `tune_offline` for what may be raised.

    A runner that measures finishes one problem after the other, others try all problems' trials together. Ctrl-C ends
    the search in good order.
    """
    store.ready()
    store.settle_orphans()
    searches = tuple(
        Search(name, problem, device, store, plan, measures=runner.measures) for name, problem in problems.items()
    )
    tuning = _Tuning(runner, device, store, searches, progress)
    began = time.monotonic()
    groups = [(search,) for search in searches] if runner.measures else [searches]
    try:
        for index, group in enumerate(groups):
            spent = time.monotonic() - began
            share = None
            if plan.budget_seconds is not None:  # what is left, shared out equally
                share = max(0.0, plan.budget_seconds - spent) / (len(groups) - index)
            tuning.search(group, share)
            if runner.measures:
                tuning.confirm(group[0])
    except KeyboardInterrupt:
        store.withdraw()
        return Tuned(searches, True)
    return Tuned(searches, False)


class _Tuning:
    """A run of the tuner: the loop of asking, running and writing down."""

    def __init__(
        self, runner: Runner, device: DeviceSpec, store: Store, searches: Sequence[Search], progress: Progress | None
    ) -> None:
        self.runner, self.device, self.store, self.searches = runner, device, store, searches
        self.progress = progress or (lambda event: None)
        self.done = 0

    def search(self, group: Sequence[Search], seconds: float | None) -> None:
        """Try what the strategies of these problems ask for, until they or the time end."""
        deadline = float("inf") if seconds is None else time.monotonic() + seconds
        while time.monotonic() < deadline:
            owner: dict[Trial, Search] = {}
            for search in group:
                owner.update(dict.fromkeys(search.batch(), search))
            if not owner:
                return
            expected = self.done + len(owner) + sum(search.remaining for search in self.searches)
            self.progress(Event(self.done, expected))
            with closing(_closable(self.runner.measure(list(owner), self._starting))) as outcomes:
                seen: set[Trial] = set()
                for outcome in outcomes:
                    self._settle(owner[outcome.trial], outcome, outcome.trial not in seen, expected)
                    seen.add(outcome.trial)
                    if time.monotonic() >= deadline:
                        return

    def confirm(self, search: Search) -> None:
        """Look at the finalists again until the winner is among those that were looked at.

        PyTorch's own convolution is a candidate too: where no other is left, its time is noted all the same.
        """
        self._look_again(search)
        if search.lacks_aten:
            us = self.runner.aten_us(search.problem)
            if us is not None:
                self.store.put([search.settle_aten(us)])

    def _look_again(self, search: Search) -> None:
        looked_at: set[Trial] = set()
        while True:
            best = search.best()
            if best is None or best.measured_us is None or best.aten_us is not None:
                return
            finalists = [trial for trial in search.finalists() if trial not in looked_at]
            if not finalists:
                return
            looked_at.update(finalists)
            for outcome in self.runner.confirm(finalists):
                self._settle(search, outcome, False, 0)

    def _starting(self, trial: Trial) -> None:
        self.store.start(trial.problem, trial.config, self.device.key)

    def _settle(self, search: Search, outcome: Outcome, counts: bool, expected: int) -> None:
        record = search.settle(outcome)
        self.store.put([record])
        if counts:
            search.ran += 1
            self.done += 1
            self.progress(Event(self.done, expected, search.name, record))


def _closable(outcomes: Iterator[Outcome]) -> Generator[Outcome]:
    """The outcomes as a generator: leaving it early ends the runner's."""
    yield from outcomes


def tune_offline(
    problems: Mapping[str, ConvProblem],
    device: DeviceSpec,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    store: Store | None = None,
    limit: int | None = None,
    effort: str = "standard",
    strategy: str | None = None,
    seed: int = 0,
    budget_seconds: float | None = None,
) -> pandas.DataFrame:
    """Find a configuration for every problem without a GPU, and keep it in the store as predicted.

    Args:
        problems: convolutions by name, forward passes and gradients.
        device: what to tune for.
        jobs: worker processes; by default as many as cores and memory allow.
        progress: called with an `Event` when a batch begins and when a trial has ended.
        limit: configurations to compile per problem, the heuristic's choice among them, instead of the effort's.
        effort: `none`, `quick`, `standard`, `full` or `exhaustive`; see `efforts`.
        strategy, seed, budget_seconds: how to search, and for how long.

    Returns:
        One row per problem: configuration, exact resources of its compiled code, and the prediction. Times are
        microseconds, `*_bytes` bytes, all predicted. After Ctrl-C, what was found by then.

    Raises:
        ValueError: when no configuration can run a problem, with the reason.
        RuntimeError: when every configuration of a problem failed to compile, with the first failure.
        StoreError: when the store cannot be written, before anything is compiled.
    """
    plan = plan_effort(effort, measures=False, strategy=strategy, seed=seed, budget_seconds=budget_seconds, limit=limit)
    store = default_store() if store is None else store
    with PredictedRunner(device, jobs) as runner:
        tuned = tune_with(runner, problems, device, store, plan, progress)
    return frame_of([tuned])
