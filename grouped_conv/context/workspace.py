"""How much extra memory a call's gradients may use: a process-wide default and a scoped override.

The workspace comes from torch's allocator and lives as long as one call. It holds the partial sums of a weight gradient
and, where that is predicted to pay, the activation's gradient. Under a smaller limit, kernels apply the
activation's derivative while they load, and the output pixels are divided among fewer programs, at least one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WORKSPACE_BYTES

_process_default = WORKSPACE_BYTES
_scoped: ContextVar[int | None] = ContextVar("grouped_conv_max_workspace", default=None)


def max_workspace_bytes() -> int:
    """The current limit, in bytes."""
    scoped = _scoped.get()
    return _process_default if scoped is None else scoped


def set_max_workspace(size: int) -> None:
    """Limit the workspace that the gradients of one call may borrow to `size` bytes, for this process.

    Raises:
        ValueError: for a negative size.
    """
    global _process_default
    _process_default = _checked(size)


@contextmanager
def max_workspace(size: int) -> Iterator[None]:
    """Limit the workspace of gradients to `size` bytes inside the block, in this thread or task only.

    Raises:
        ValueError: for a negative size.
    """
    token = _scoped.set(_checked(size))
    try:
        yield
    finally:
        _scoped.reset(token)


def _checked(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"max_workspace must be a number of bytes, at least 0, but got {size!r}")
    return size
