"""What runs a trial: the protocol that searches are written against, and the values that travel through it.

A runner predicts, replays a recording or measures (`predicted_runner`, `replay_runner`, `live_runner`); a search sees
times and failures and cannot tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration of one problem."""

    problem: ConvProblem
    config: KernelConfig

    def __str__(self) -> str:
        return f"{self.config.family} {self.config} of {self.problem}"


Starting = Callable[[Trial], None]
"""Called just before a trial may bring its process down."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial.

    Attributes:
        trial: which one.
        us: microseconds by which trials of one problem are compared; None when it failed.
        failure: one of `records.FAILURES`, None when there is a time.
        detail: what went wrong.
        low_us, high_us: confidence interval of a measured median.
        samples: number of timings.
        aten_us: PyTorch's own convolution, timed in the same rounds.
        protocol: name of the recipe of a measured time; empty for a prediction.
        data: resources, the prediction's terms and the like; plain JSON.
    """

    trial: Trial
    us: float | None = None
    failure: str | None = None
    detail: str = ""
    low_us: float | None = None
    high_us: float | None = None
    samples: int = 0
    aten_us: float | None = None
    protocol: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Runner(Protocol):
    """A context manager that runs trials, several problems' at once where it can."""

    measures: bool
    """Whether its times are measured."""

    def measure(self, trials: Sequence[Trial], starting: Starting) -> Iterator[Outcome]:
        """One outcome per trial, in any order."""

    def confirm(self, finalists: Sequence[Trial]) -> Iterator[Outcome]:
        """Look again, harder, at the best trials of one problem; a runner that knows no better yields nothing."""

    def aten_us(self, problem: ConvProblem) -> float | None:
        """PyTorch's own convolution alone, in microseconds; None from a runner that does not measure."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
