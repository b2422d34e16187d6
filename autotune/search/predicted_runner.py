"""The runner without a device: compiles a trial for real and predicts its time from the code that came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from grouped_conv.autotune.compiling import compile_job
from grouped_conv.autotune.search.judging import judged
from grouped_conv.autotune.search.runner import Outcome, Starting, Trial
from grouped_conv.autotune.workers.pool import JobResult, WorkerPool
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

COMPILE_SECONDS = 60.0


class PredictedRunner:
    """Compiles for `device` in worker processes, ranks by the cost model.

    Args:
        jobs: worker processes; by default as many as cores and memory allow.
    """

    measures = False

    def __init__(self, device: DeviceSpec, jobs: int | None = None) -> None:
        self.device = device
        self._pool = WorkerPool(compile_job.FUNCTION, jobs, COMPILE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def measure(self, trials: Sequence[Trial], starting: Starting) -> Iterator[Outcome]:
        """Compile every trial; outcomes come as they finish."""
        payloads = [compile_job.payload(trial.problem, trial.config, self.device) for trial in trials]
        for result in self._pool.run(payloads):
            yield compiled_outcome(trials[result.index], self.device, result)

    def confirm(self, finalists: Sequence[Trial]) -> Iterator[Outcome]:
        """Nothing: a prediction gets no better by repeating it."""
        return iter(())

    def aten_us(self, problem: ConvProblem) -> float | None:
        """None: nothing is timed."""
        return None


def compiled_outcome(trial: Trial, device: DeviceSpec, result: JobResult) -> Outcome:
    """What one compilation says about its trial.

    Raises:
        RuntimeError: for an exception that says nothing about the configuration: a fault of ours.
    """
    seconds = {"compile_seconds": round(result.seconds, 2)}
    if result.status == "error":
        raise RuntimeError(f"compiling {trial} failed: {result.detail}")
    if result.status != "ok":
        return Outcome(trial, failure=result.status, detail=result.detail, data=seconds)
    if "failure" in result.value:
        return Outcome(trial, failure=result.value["failure"], detail=result.value["detail"], data=seconds)
    launches = result.value["launches"]
    main = next(launch for launch in launches if launch["kernel"] == trial.config.family)
    data = {"resources": main["resources"], "launches": [launch["kernel"] for launch in launches], **seconds}
    return judged(trial, device, data)
