"""What each convolution ran: `with trace() as calls` collects one record per call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grouped_conv.kernels import ConvProblem, KernelConfig
    from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
    from grouped_conv.kernels.separable.problem import SeparableProblem


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of a convolution.

    Attributes:
        problem: the convolution, or the two of a separable block; `None` if the kernels do not support its dtype.
        path: the kernel family that ran (`implicit_gemm`), `aten`, `empty` when there was nothing to compute, or
            `two_calls` for a separable block that was not fused; then the records of both convolutions follow.
        reason: why this path was taken.
        launches: names of the kernels launched, in order, pack passes and second passes included; empty for `aten`.
        config: the configuration of the main kernel, or `None`.
        source: where the configuration came from (`given`, `measured`, `predicted`, `preset`, `nearby device`,
            `nearby batch`, `heuristic`), or `""`.
    """

    problem: ConvProblem | SeparableProblem | LrnPoolProblem | None
    path: str
    reason: str
    launches: tuple[str, ...] = ()
    config: KernelConfig | None = None
    source: str = ""

    def __str__(self) -> str:
        what = f"{self.problem}: " if self.problem else ""
        how = f" {' -> '.join(self.launches)} [{self.config}, {self.source}]" if self.launches else ""
        return f"{what}{self.path}{how} ({self.reason})"


_open: ContextVar[tuple[list[CallRecord], ...]] = ContextVar("grouped_conv_trace", default=())


@contextmanager
def trace() -> Iterator[list[CallRecord]]:
    """Collect a `CallRecord` for each convolution in the block, in this thread or task; blocks nest."""
    calls: list[CallRecord] = []
    token = _open.set((*_open.get(), calls))
    try:
        yield calls
    finally:
        _open.reset(token)


def record(calls: Iterable[CallRecord]) -> None:
    """Hand these calls to every open `trace()`."""
    for opened in _open.get():
        opened.extend(calls)
