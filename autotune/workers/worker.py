"""The process that `WorkerProcess` starts: JSON payloads in, JSON results out, one per line, until the file ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from importlib import import_module

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """On Linux, be killed when the parent dies, however it dies (strictly: when the thread that started us ends)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(function: str) -> None:
    """Serve `function` ("module:name") until the parent closes the pipe."""
    end_with_parent()
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a compiler prints goes to the log, not between our lines
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    channel.write('{"status": "ready"}\n')
    for line in sys.stdin:
        began = time.monotonic()
        try:
            answer = {"status": "ok", "value": call(json.loads(line))}
        except Exception as error:  # whatever the compiler raises is a result about this configuration
            answer = {"status": "error", "detail": f"{type(error).__name__}: {error}"[:2000]}
        channel.write(json.dumps({**answer, "seconds": time.monotonic() - began}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
