"""The runner that replays a recording: outcomes come from a file, nothing is compiled or timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from grouped_conv.autotune.search.recording import Recording
from grouped_conv.autotune.search.runner import Outcome, Starting, Trial
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem


class ReplayRunner:
    """Answers from a recording as if it were the device.

    Attributes:
        executed: the trials that were run, in order.
    """

    measures = True

    def __init__(self, recording: Recording) -> None:
        self._protocol = f"replayed: {recording.protocol}"
        self._aten = {sweep.problem: sweep.aten_us for sweep in recording.sweeps}
        self._known: dict[tuple[ConvProblem, KernelConfig], Outcome] = {
            (sweep.problem, config): outcome for sweep in recording.sweeps for config, outcome in sweep.outcomes.items()
        }
        self.executed: list[Trial] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def measure(self, trials: Sequence[Trial], starting: Starting) -> Iterator[Outcome]:
        """What was recorded.

        Raises:
            RuntimeError: for a trial that the recording lacks.
        """
        for trial in trials:
            starting(trial)
            self.executed.append(trial)
            known = self._known.get((trial.problem, trial.config))
            if known is None:
                raise RuntimeError(f"the recording has no trial of {trial}")
            yield replace(known, protocol=self._protocol)

    def confirm(self, finalists: Sequence[Trial]) -> Iterator[Outcome]:
        """The same times, with PyTorch's own."""
        for trial in finalists:
            known = self._known[trial.problem, trial.config]
            yield replace(known, protocol=self._protocol, aten_us=self._aten[trial.problem])

    def aten_us(self, problem: ConvProblem) -> float | None:
        """As it was recorded."""
        return self._aten[problem]
