"""Plans by key, shared by every operator: made once by one thread while others wait; a forked child starts with none.

Looking a plan up touches no store and compiles nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import float32_flag
from grouped_conv.context import overrides
from grouped_conv.context.policies import get_policy, is_strict
from grouped_conv.planning import executors, records

MAX_PLANS = 16_384
"""Plans kept; beyond it the oldest go. Compiled kernels stay."""

_C = torch._C  # torch.backends.cudnn reads the same flags, each through a Python property

_plans: dict[Any, Any] = {}
_making: dict[Any, threading.Lock] = {}
_lock = threading.Lock()


def find(key: Any) -> Any | None:
    """The plan with this key, or None."""
    return _plans.get(key)


def find_or_make(key: Any, make: Callable[[], tuple[Any, bool]]) -> Any:
    """The plan with this key, made now unless another thread has made it in the meantime.

    Args:
        make: returns the plan, and whether to keep it.
    """
    with _lock:
        making = _making.setdefault(key, threading.Lock())
    with making:
        plan = _plans.get(key)
        if plan is not None:
            return plan
        try:
            plan, lasting = make()
            if lasting:
                _keep(key, plan)
        finally:
            with _lock:
                _making.pop(key, None)
        return plan


def _keep(key: Any, plan: Any) -> None:
    with _lock:
        while len(_plans) >= MAX_PLANS:
            del _plans[next(iter(_plans))]
        _plans[key] = plan


def placement(tensor: Tensor) -> tuple[Any, ...]:
    """What a plan may depend on of a tensor: dtype, shape, strides, alignment and device."""
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() & 15, tensor.get_device()


def surroundings(input: Tensor) -> tuple[Any, ...]:
    """What a plan may depend on besides its call: executor, policy, configuration, records, torch's flags."""
    return (
        executors.executor_of_cpu_tensors(),
        get_policy(),
        overrides.given_config(),
        (records.generation(), is_strict()) if input.get_device() >= 0 else None,
        _C._get_deterministic_algorithms(),
        _C._get_cudnn_deterministic(),
        _C._get_cudnn_enabled(),
        _C._get_cudnn_benchmark(),
        float32_flag() if input.dtype is torch.float32 else "",
    )


def forget_plans() -> None:
    """Drop every plan of this process; they are made again on the next calls."""
    with _lock:
        _plans.clear()
        _making.clear()


_inherited: list[Any] = []  # a child must not unload its parent's kernels, so what it inherits is kept, unused


def _after_fork() -> None:
    global _lock, _plans, _making
    _inherited.append((_plans, executors.abandon_kernels()))
    _lock, _plans, _making = threading.Lock(), {}, {}


os.register_at_fork(after_in_child=_after_fork)
