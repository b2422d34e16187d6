"""Calls by torch's own convolution and by a kernel, side by side."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from dispatch_calls import CONFIG

import grouped_conv
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels import KernelConfig

BOTH_PATHS = pytest.mark.parametrize("path", ["aten", "implicit_gemm"])


@contextmanager
def by(path: str, config: KernelConfig | None = CONFIG) -> Iterator[list[CallRecord]]:
    """Calls inside the block run on this path, the kernel in the interpreter; after the block that is checked.

    Args:
        config: the kernel's configuration; None leaves it to the heuristic.
    """
    with grouped_conv.trace() as calls, nullcontext() if path == "aten" else grouped_conv.interpret(config):
        yield calls
    assert {call.path for call in calls} == {path}
