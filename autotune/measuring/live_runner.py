"""The runner that measures: compiles in parallel where the device is a GPU, verifies, then times in one process.

A trial is verified and gets its first time, from five samples, as soon as it is compiled, while others still compile.
Those within twice the best are then raced against each other in interleaved rounds, on a machine that has come to rest:
what was sampled while compilers ran does not count there. Every job is one configuration's, so a dead process has one
suspect.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from grouped_conv.autotune.measuring.race import QUALIFYING, final_rungs, race
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.records.statistics import may_be_fastest, median_of
from grouped_conv.autotune.search.predicted_runner import PredictedRunner
from grouped_conv.autotune.search.runner import Outcome, Starting, Trial
from grouped_conv.autotune.workers.measuring_process import MeasuringProcess
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MEASURE = "grouped_conv.autotune.measuring.measure_job:measure_job"
"""By name: this process need not import torch."""
JOB_SECONDS = 120.0
FIRST, REST = QUALIFYING[0], QUALIFYING[1:]
SEEDS = (1, 2)
"""Of the operands that finalists are verified on again; the first verification has seed 0."""
BROKEN = ("launch",)
"""Kinds of failure after which the process cannot be trusted: a CUDA error stays until the context is gone."""


class LiveRunner:
    """Measures on one device.

    Args:
        device: its specification; `native_lane.DEVICE` is the CPU through the native lane.
        index: number of the CUDA device.
        jobs: compile processes; by default as many as cores and memory allow.
        function: the job of the measuring process, for tests.
        timeout: seconds one job may take, its compilation included.
    """

    measures = True

    def __init__(
        self,
        device: DeviceSpec,
        index: int = 0,
        *,
        jobs: int | None = None,
        function: str = MEASURE,
        timeout: float = JOB_SECONDS,
    ) -> None:
        self.device = device
        opening = {"op": "open", "device": device.to_json(), "index": index, "flags": torch_flags()}
        self._process = MeasuringProcess(function, opening, timeout)
        self._compiler = None if device.key == native_lane.KEY else PredictedRunner(device, jobs)
        self._failed: dict[Trial, Outcome] = {}
        self._protocol = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)
        if self._compiler is not None:
            self._compiler.__exit__(kind, error, trace)

    def measure(self, trials: Sequence[Trial], starting: Starting) -> Iterator[Outcome]:
        """A time or a failure of every trial; those that are raced get a second, better time."""
        by_problem: dict[ConvProblem, list[Trial]] = {}
        for trial in trials:
            by_problem.setdefault(trial.problem, []).append(trial)
        for group in by_problem.values():
            yield from self._measure(group, starting)

    def confirm(self, finalists: Sequence[Trial]) -> Iterator[Outcome]:
        """Race the finalists of one problem and PyTorch's own convolution; verify harder whatever may win."""
        aten = Trial(finalists[0].problem, _Aten())
        self._failed.clear()
        rough = {trial: median_of(self._sample(trial, FIRST.samples) or [0.0]).value for trial in (aten, *finalists)}
        if aten in self._failed:
            raise RuntimeError(f"PyTorch's own convolution failed: {self._failed[aten].detail}")
        racing = [trial for trial in finalists if trial not in self._failed]
        medians = race(racing, self._sample, final_rungs(rough.values()), kept=(aten,))
        yield from self._failed.values()
        standing = sorted((trial for trial in racing if trial in medians), key=lambda trial: medians[trial].value)
        sound: set[Trial] = set()
        while True:
            ties = [standing[place] for place in may_be_fastest([medians[trial] for trial in standing])]
            trial = next((trial for trial in ties if trial not in sound), None)
            if trial is None:
                break
            checked = (self.verify(trial, problem, seed) for problem, seed in checks(trial))
            failure = next((outcome for outcome in checked if outcome is not None), None)
            if failure is None:
                sound.add(trial)
            else:
                standing.remove(trial)
                yield failure
        for trial in standing:
            yield self._timed(trial, medians[trial], medians[aten].value)

    def aten_us(self, problem: ConvProblem) -> float | None:
        """The median of as many samples as a candidate has before the final."""
        aten = Trial(problem, _Aten())
        self._failed.clear()
        samples = self._sample(aten, REST[-1].samples)
        if samples is None:
            raise RuntimeError(f"PyTorch's own convolution failed: {self._failed[aten].detail}")
        return median_of(samples).value

    def _measure(self, trials: Sequence[Trial], starting: Starting) -> Iterator[Outcome]:
        first: dict[Trial, Sequence[float]] = {}
        for outcome in self._compiled(trials, starting):
            trial = outcome.trial
            if outcome.failure is not None:
                yield outcome
                continue
            starting(trial)
            self._failed.clear()
            failure = self.verify(trial)
            samples = None if failure else self._sample(trial, FIRST.samples)
            if samples is None:
                yield failure or self._failed[trial]
                continue
            first[trial] = samples
            yield self._timed(trial, median_of(samples), data=outcome.data)
        rough = {trial: median_of(first[trial]).value for trial in trials if trial in first}
        racing = [trial for trial, us in rough.items() if us <= FIRST.drop_above * min(rough.values())]
        if len(racing) > 1:
            medians = race(racing, self._sample, REST, begun=first if self._compiler is None else None)
            for trial in racing:
                yield self._timed(trial, medians[trial]) if trial in medians else self._failed[trial]

    def _compiled(self, trials: Sequence[Trial], starting: Starting) -> Iterator[Outcome]:
        """Each trial once it is compiled, while others still are; at once where the device compiles for itself."""
        if self._compiler is None:
            return (Outcome(trial) for trial in trials)
        return self._compiler.measure(trials, starting)

    def _timed(
        self, trial: Trial, median: Any, aten_us: float | None = None, data: Mapping[str, Any] | None = None
    ) -> Outcome:
        return Outcome(
            trial,
            median.value,
            low_us=median.low,
            high_us=median.high,
            samples=median.samples,
            aten_us=aten_us,
            protocol=self._protocol,
            data=data or {},
        )

    def verify(self, trial: Trial, problem: ConvProblem | None = None, seed: int = 0) -> Outcome | None:
        """The failure, or None when the configuration gives right results.

        Args:
            problem: another problem than the trial's to run the configuration on.
            seed: of the operands.
        """
        problem = problem or trial.problem
        answer = self._job(trial, {"op": "verify", "problem": problem.to_json(), "seed": seed})
        if answer["failure"] is None:
            return None
        where = "" if (problem, seed) == (trial.problem, 0) else f"on {problem} with seed {seed}: "
        return Outcome(trial, failure=answer["failure"], detail=where + answer["detail"])

    def _sample(self, trial: Trial, count: int) -> Sequence[float] | None:
        """Times in microseconds; None when it failed, with the outcome in `_failed`."""
        answer = self._job(trial, {"op": "sample", "problem": trial.problem.to_json(), "count": count})
        if answer["failure"] is not None:
            self._failed[trial] = Outcome(trial, failure=answer["failure"], detail=answer["detail"])
            return None
        self._protocol = answer["protocol"]
        times: list[float] = answer["us"]
        return times

    def _job(self, trial: Trial, job: dict[str, Any]) -> dict[str, Any]:
        """The job's answer; a process that died or hung is the failure of its trial.

        Raises:
            RuntimeError: for an exception that says nothing about the configuration, with its name.
        """
        config = None if isinstance(trial.config, _Aten) else trial.config.to_json()
        result = self._process.call({**job, "config": config})
        if result.status == "error":
            raise RuntimeError(f"measuring {trial} failed: {result.detail}")
        if result.status != "ok":
            return {"failure": result.status, "detail": result.detail}
        answer: dict[str, Any] = result.value
        if answer["failure"] in BROKEN:
            self._process.restart()
        return answer


class _Aten(KernelConfig):
    """PyTorch's own convolution as a racer."""

    __slots__ = ()
    family = "aten"

    def __str__(self) -> str:
        return "PyTorch's own convolution"


def checks(trial: Trial) -> Iterator[tuple[ConvProblem, int]]:
    """What else a finalist must compute correctly: other operands, and a shape with odd tails."""
    for seed in SEEDS:
        yield trial.problem, seed
    odd = odd_shape(trial.problem)
    if why_invalid(odd, trial.config) is None:
        yield odd, 0


def odd_shape(problem: ConvProblem) -> ConvProblem:
    """The same convolution of three images, larger by one row and two columns: the last tiles are partly empty."""
    height, width = problem.in_size
    return replace(problem, batch=3, in_size=(height + 1, width + 2))


def torch_flags() -> dict[str, Any]:
    """This process's settings of torch that decide what PyTorch would run; empty where torch was never imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cudnn = torch.backends.cudnn
    return {
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "fp32_precision": cudnn.conv.fp32_precision,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
    }
