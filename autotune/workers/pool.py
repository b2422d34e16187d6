"""Runs jobs in worker processes that can be killed: a compiler that hangs or aborts costs one job, not the search.

`worker_process` is one worker, this file the pool of them. Compiled code stays in Triton's cache on disk.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from grouped_conv.autotune.workers.process import START_SECONDS, WorkerProcess

WORKER_BYTES = 750 << 20
"""Memory set aside for one worker: 165 MB of interpreter and Triton, the rest for a large kernel's compilation."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of one job.

    Attributes:
        index: the job's place in the sequence.
        status: `ok`, `error` (the job raised), `timeout` (its worker was killed) or `crashed` (its worker died).
        value: the job's result, plain JSON; `None` unless `ok`.
        detail: the error, or the last words of a dead worker.
        seconds: time the job took.
    """

    index: int
    status: str
    value: Any = None
    detail: str = ""
    seconds: float = 0.0


def default_jobs() -> int:
    """As many workers as this process may use cores, fewer where memory is short."""
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // WORKER_BYTES))


class WorkerPool:
    """A context manager around worker processes that all run one function.

    Args:
        function: `"module:name"` of a function of one JSON value that returns a JSON value.
        jobs: number of workers; `default_jobs()` by default.
        timeout: seconds one job may take.
    """

    def __init__(self, function: str, jobs: int | None = None, timeout: float = 60.0) -> None:
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs must be at least 1, but got {jobs}")
        self.function, self.jobs, self.timeout = function, jobs or default_jobs(), timeout
        self._workers: list[WorkerProcess] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def run(self, payloads: Sequence[Any]) -> Iterator[JobResult]:
        """Run every payload; outcomes come as they finish. Leaving the loop early ends the workers that are at work.

        Every worker has its next job before an outcome is handed out: they go on while the caller looks at it.
        """
        waiting = list(enumerate(payloads))[::-1]
        with selectors.DefaultSelector() as selector:
            while len(self._workers) < min(self.jobs, len(waiting)):
                self._workers.append(WorkerProcess(self.function))
            for worker in self._workers:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                self._feed(worker, waiting)
            missing = len(payloads)
            try:
                while missing:
                    for outcome in self._wait(selector, waiting):
                        missing -= 1
                        yield outcome
            finally:
                for worker in [worker for worker in self._workers if worker.job is not None]:
                    self._workers.remove(worker)
                    worker.kill()

    def _wait(self, selector: selectors.BaseSelector, waiting: list[tuple[int, Any]]) -> list[JobResult]:
        ended: list[JobResult] = []
        deadline = min((self._deadline(worker) for worker in self._workers), default=time.monotonic())
        for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
            worker: WorkerProcess = key.data
            messages = worker.lines()
            if messages is None:
                ended += self._replace(worker, "crashed", worker.last_words(), selector, waiting)
            for message in messages or ():
                if worker.job is not None and worker.ready:
                    ended.append(_finished(worker, message))
                worker.ready, worker.began = True, time.monotonic()
                self._feed(worker, waiting)
        for worker in [worker for worker in self._workers if self._deadline(worker) <= time.monotonic()]:
            what = f"no result within {self.timeout:g} s" if worker.ready else f"not ready after {START_SECONDS:g} s"
            ended += self._replace(worker, "timeout", what, selector, waiting)
        return ended

    def _deadline(self, worker: WorkerProcess) -> float:
        if not worker.ready:
            return worker.began + START_SECONDS
        return worker.began + self.timeout if worker.job is not None else float("inf")

    def _feed(self, worker: WorkerProcess, waiting: list[tuple[int, Any]]) -> None:
        if worker.ready and worker.job is None and waiting:
            index, payload = waiting.pop()
            worker.give(index, payload)

    def _replace(
        self,
        worker: WorkerProcess,
        status: str,
        detail: str,
        selector: selectors.BaseSelector,
        waiting: list[tuple[int, Any]],
    ) -> Iterator[JobResult]:
        """End a worker, report the job it had, start another for what is left."""
        selector.unregister(worker.stdout)
        self._workers.remove(worker)
        worker.kill()
        if worker.job is not None:
            yield JobResult(worker.job, status, None, detail, time.monotonic() - worker.began)
        elif not worker.ready:
            raise RuntimeError(f"a compile worker did not start: {detail}")
        if waiting:
            fresh = WorkerProcess(self.function)
            self._workers.append(fresh)
            selector.register(fresh.stdout, selectors.EVENT_READ, fresh)


def _finished(worker: WorkerProcess, message: dict[str, Any]) -> JobResult:
    index, worker.job = worker.job, None
    assert index is not None
    return JobResult(index, message["status"], message.get("value"), message.get("detail", ""), message["seconds"])
