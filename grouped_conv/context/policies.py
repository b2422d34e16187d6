"""Which convolutions run our kernels: the policy and strict mode, as process-wide defaults and scoped overrides.

`measured` (the default) runs a kernel only where this device has a recorded self-check and a measured win, `predicted`
also runs predicted configurations after the self-check, `kernels` always runs them. Strict mode makes an untuned
convolution on a GPU an error, under any policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

POLICIES = ("measured", "predicted", "kernels")

_process_default = "measured"
_scoped: ContextVar[str | None] = ContextVar("grouped_conv_policy", default=None)
_process_strict: bool | None = None
"""None until it is set or read; then the environment is read, once."""
_scoped_strict: ContextVar[bool | None] = ContextVar("grouped_conv_strict", default=None)


def get_policy() -> str:
    """The current policy: the innermost `policy(...)` block's, or else the process's."""
    return _scoped.get() or _process_default


def set_policy(name: str) -> None:
    """Set the policy of this process; `policy(...)` blocks override it.

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


def is_strict() -> bool:
    """Is strict mode on: by the innermost `strict(...)` block, `set_strict`, or `GROUPED_CONV_STRICT=1`?"""
    global _process_strict
    scoped = _scoped_strict.get()
    if scoped is not None:
        return scoped
    if _process_strict is None:
        from grouped_conv.autotune import settings

        _process_strict = settings.is_strict()
    return _process_strict


def set_strict(enabled: bool) -> None:
    """Turn strict mode on or off for this process; `strict(...)` blocks override it, and the environment is ignored."""
    global _process_strict
    _process_strict = bool(enabled)


@contextmanager
def strict(enabled: bool = True) -> Iterator[None]:
    """Make untuned convolutions an error inside the block, in this thread or task only.

    The error, `grouped_conv.autotune.UntunedError`, contains the command that tunes the convolution.
    """
    token = _scoped_strict.set(bool(enabled))
    try:
        yield
    finally:
        _scoped_strict.reset(token)


def _checked(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; accepted: {', '.join(POLICIES)}")
    return name
