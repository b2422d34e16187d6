"""One long-lived process that measures on one device: jobs one at a time, each with a time-out.

A hang, an abort or a broken CUDA context costs the job; the next one finds a fresh process.
"""

from __future__ import annotations

import selectors
import time
from types import TracebackType
from typing import Any, Self

from grouped_conv.autotune.workers.pool import JobResult
from grouped_conv.autotune.workers.process import START_SECONDS, WorkerProcess


class MeasuringProcess:
    """A context manager around the process; it starts with the first job.

    Args:
        function: `"module:name"` of the function of one JSON value that does a job.
        opening: the job that every fresh process is given first.
        timeout: seconds one job may take.
    """

    def __init__(self, function: str, opening: Any, timeout: float = 120.0) -> None:
        self.function, self.opening, self.timeout = function, opening, timeout
        self.restarts = -1
        self._worker: WorkerProcess | None = None
        self._jobs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restart()

    def restart(self) -> None:
        """End the process; the next job starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def call(self, payload: Any) -> JobResult:
        """Do one job.

        Raises:
            RuntimeError: when the process cannot start or cannot open its device, with what it said.
        """
        worker = self._ready()
        return self._do(worker, payload, self.timeout)

    def _ready(self) -> WorkerProcess:
        if self._worker is not None:
            return self._worker
        self._worker = WorkerProcess(self.function)
        self.restarts += 1
        started = self._answer(self._worker, time.monotonic() + START_SECONDS)
        if isinstance(started, str):
            self.restart()
            raise RuntimeError(f"the measuring process did not start: {started}")
        worker = self._worker
        opened = self._do(worker, self.opening, START_SECONDS)
        if opened.status != "ok":
            self.restart()
            raise RuntimeError(f"the measuring process could not open its device: {opened.detail}")
        return worker

    def _do(self, worker: WorkerProcess, payload: Any, seconds: float) -> JobResult:
        self._jobs += 1
        began = time.monotonic()
        worker.give(self._jobs, payload)
        answer = self._answer(worker, began + seconds)
        took = time.monotonic() - began
        if isinstance(answer, str):
            self.restart()
            status = "timeout" if took >= seconds else "crashed"
            return JobResult(self._jobs, status, None, answer, took)
        return JobResult(self._jobs, answer["status"], answer.get("value"), answer.get("detail", ""), took)

    def _answer(self, worker: WorkerProcess, deadline: float) -> dict[str, Any] | str:
        """The next message, or how the process ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return "no result in time"
                messages = worker.lines()
                if messages is None:
                    return worker.last_words()
                if messages:
                    return messages[0]
