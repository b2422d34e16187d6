"""One worker process: a fresh interpreter that runs jobs of one function, can be killed, and dies with its parent.

A worker is `python -m grouped_conv.autotune.workers.worker`, neither forked nor re-importing the caller's main module,
in a new session, so that Ctrl-C reaches only the parent, which then ends it. Jobs and results are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

from grouped_conv.autotune import settings

START_SECONDS = 60.0
"""A worker that has not reported ready by then counts as hung."""


class WorkerProcess:
    """One process with at most one job in it.

    Args:
        function: `"module:name"` of a function of one JSON value that returns a JSON value.
    """

    def __init__(self, function: str) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile(prefix="grouped-conv-")  # noqa: SIM115 - closed by kill()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grouped_conv.autotune.workers.worker", function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=settings.worker_environment(),
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.job: int | None = None
        self.ready = False
        self.began = time.monotonic()
        self._pending = b""

    def give(self, index: int, payload: Any) -> None:
        """Send the job with this number."""
        self.job, self.began = index, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # a dead worker's end of file is handled where it is read
            self.stdin.write(json.dumps(payload).encode() + b"\n")
            self.stdin.flush()

    def lines(self) -> list[dict[str, Any]] | None:
        """Messages that have arrived; `None` once the worker is gone."""
        chunk = os.read(self.stdout.fileno(), 1 << 16)
        if not chunk:
            return None
        *complete, self._pending = (self._pending + chunk).split(b"\n")
        return [json.loads(line) for line in complete]

    def last_words(self) -> str:
        """How the process ended, and the end of what it wrote to stderr."""
        code = self.process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 2000))
        tail = self.log.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {tail[-1]}" if tail else how

    def kill(self) -> None:
        """End the process and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.log):
            with contextlib.suppress(OSError):
                stream.close()
