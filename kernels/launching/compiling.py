"""Keeps compiling and interpreting apart: an interpreted kernel patches Triton's language for all threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import triton.language as tl
from triton.runtime.jit import JITFunction

_LOCK = threading.RLock()
_depth = 0


@contextmanager
def patching() -> Iterator[bool]:
    """Holds the language for this thread; other threads wait. Blocks nest; yields whether this one is the outermost."""
    global _depth
    with _LOCK:
        _depth += 1
        try:
            yield _depth == 1
        finally:
            _depth -= 1


@contextmanager
def compiling() -> Iterator[None]:
    """Guards a compilation: it waits for other threads' interpreted blocks, and refuses to run inside one.

    Raises:
        RuntimeError: inside `interpreting()`, or when TRITON_INTERPRET=1 was set before Triton was imported.
    """
    with _LOCK:
        if _depth:
            raise RuntimeError(
                "cannot compile a kernel inside interpret(): Triton's language is patched there; leave the block first"
            )
        if not isinstance(tl.zeros, JITFunction):
            raise RuntimeError("cannot compile a kernel: TRITON_INTERPRET=1 was set when Triton was imported")
        yield
