"""Gradients under the policies, traces and settings of their forward pass.

Autograd computes the gradients of CUDA tensors in one thread per GPU, where the caller's context variables are not set.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Result = TypeVar("Result")


def remember(ctx: Any, input: Tensor) -> None:
    """Note the forward pass's context in autograd's `ctx`, where the gradients may want it."""
    ctx.thread, ctx.context = threading.get_ident(), contextvars.copy_context() if has_thread(input) else None


def has_thread(input: Tensor) -> bool:
    """Does autograd compute this tensor's gradients in a thread of its own?"""
    return input.is_cuda


def run(ctx: Any, compute: Callable[[], Result]) -> Result:
    """The result of `compute`, in the context that `remember` noted if this is another thread."""
    if ctx.context is None or ctx.thread == threading.get_ident():
        return compute()
    return ctx.context.copy().run(compute)
