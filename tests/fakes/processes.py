"""Work outside the test's own thread: in a fresh interpreter, in a forked child, in several threads at once."""

import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent
from typing import Any

from checkout import HELPERS, ROOT

NOBODY = 65534


def start_python(code: str, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    """A fresh interpreter that runs this code; it finds the package and what tests share."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), HELPERS, *([known] if known else [])])
    return subprocess.Popen(
        [sys.executable, "-c", dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_python(code: str, *arguments: object, status: int = 0, **variables: str) -> str:
    """Standard output of this code in a fresh interpreter, which must end with this status within five minutes."""
    with start_python(code, *arguments, **variables) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return output


def start_child(function: Callable[[], object], user: int | None = None) -> Callable[[], Any]:
    """Start a function in a forked child; calling the result waits for what it returns, or for its error as a text.

    Args:
        user: who the child is where this process is root, to whom permissions mean nothing.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            threading.Timer(60.0, lambda: os._exit(254)).start()  # instead of waiting for ever
            if user is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            warnings.simplefilter("ignore")
            try:
                result = function()
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            os.write(writer, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writer)

    def wait() -> Any:
        with os.fdopen(reader, "rb") as pipe:
            result = pipe.read()
        os.waitpid(child, 0)
        return pickle.loads(result)

    return wait


def in_child(function: Callable[[], object], user: int | None = None) -> Any:
    """What a function returns, or its error as a text, in a forked child."""
    return start_child(function, user)()


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """What this work returns in each of several threads at once, given the thread's number; an error is raised."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
