"""Which convolutions run our kernels: the policy, as a process-wide default and a scoped override.

`measured` (the default) runs a kernel only where this device has a recorded self-check and a measured win, `predicted`
also runs predicted configurations after the self-check, `kernels` always runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

POLICIES = ("measured", "predicted", "kernels")

_process_default = "measured"
_scoped: ContextVar[str | None] = ContextVar("grouped_conv_policy", default=None)


def get_policy() -> str:
    """The policy in force here: the innermost `policy(...)` block's, or else the process's."""
    return _scoped.get() or _process_default


def set_policy(name: str) -> None:
    """Make `name` the policy of this process wherever no `policy(...)` block says otherwise.

    Raises:
        ValueError: naming the accepted policies.
    """
    global _process_default
    _process_default = _checked(name)


@contextmanager
def policy(name: str) -> Iterator[None]:
    """Use policy `name` inside the block, in this thread or task only.

    Raises:
        ValueError: naming the accepted policies.
    """
    token = _scoped.set(_checked(name))
    try:
        yield
    finally:
        _scoped.reset(token)


def _checked(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; accepted: {', '.join(POLICIES)}")
    return name
