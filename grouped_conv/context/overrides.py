"""A scoped override of the kernel configuration: `with using_config(config)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from grouped_conv.kernels.values.config import KernelConfig

given: ContextVar[KernelConfig | None] = ContextVar("grouped_conv_config", default=None)


def given_config(direction: str = "") -> KernelConfig | None:
    """The configuration that the innermost `using_config` asks for, if it computes `direction` (any by default)."""
    config = given.get()
    return config if config is None or direction in ("", config.direction) else None


@contextmanager
def using_config(config: KernelConfig | None) -> Iterator[None]:
    """Run every kernel of `config`'s direction with `config` inside the block, in this thread or task.

    `None` changes nothing.

    Raises:
        ValueError: at a call, if the configuration cannot run the problem.
    """
    if config is None:
        yield
        return
    token = given.set(config)
    try:
        yield
    finally:
        given.reset(token)
