"""Plans by key, for every operator: made once, by one thread while others wait. A forked child starts with none.

Looking up a plan reads no records and compiles nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import float32_flag
from grouped_conv.context import overrides
from grouped_conv.context.policies import get_policy, is_strict
from grouped_conv.context.tracing import CallRecord, record
from grouped_conv.planning import executors
from grouped_conv.planning.executors import Place

MAX_PLANS = 16_384
"""Plans kept; beyond it the oldest go. Compiled kernels stay."""

OperandsT = TypeVar("OperandsT", bound=tuple[Any, ...], contravariant=True)
RequestT = TypeVar("RequestT", bound=Hashable)
Results = tuple[Tensor | None, ...]
"""The tensors that an operator returns, None for those that a request does not want."""


class Plan(Protocol[OperandsT]):
    """A call that has been decided and prepared."""

    @property
    def records(self) -> tuple[CallRecord, ...]:
        """What `trace()` shows of the call."""

    def run(self, operands: OperandsT) -> Results:
        """Compute the call; the operands have the shapes, strides and alignment that the plan was made for."""


@dataclass(frozen=True, slots=True)
class Planner(Generic[OperandsT, RequestT]):
    """How the calls of one operator find their plans and run.

    Attributes:
        name: part of every key.
        make: makes the plan of a call that has none.
        also: what else a plan depends on, besides the request and the shape, strides and alignment of each operand.
    """

    name: str
    make: Callable[[OperandsT, RequestT, Place], Plan[OperandsT]]
    also: Callable[[OperandsT, RequestT], Hashable] | None = None

    def run(self, operands: OperandsT, request: RequestT) -> Results:
        """Run one call, by its plan if there is one.

        Raises:
            RuntimeError: in ATen's words for operands that the operator does not take.
        """
        plan = self.find(operands, request)
        record(plan.records)
        return plan.run(operands)

    def find(self, operands: OperandsT, request: RequestT) -> Plan[OperandsT]:
        """The plan of a call, made now if there is none."""
        parts: list[Any] = [self.name, request, None if self.also is None else self.also(operands, request)]
        for one in operands:
            if one is None:
                parts.append(None)
            elif type(one) is tuple:
                parts.append(tuple(map(placement, one)))
            else:
                parts.append((one.dtype, one.shape, one.stride(), one.data_ptr() & 15, one.get_device()))
        parts += surroundings(operands[0])
        key = tuple(parts)
        plan: Plan[OperandsT] | None = _plans.get(key)
        return find_or_make(key, lambda: self._make(operands, request)) if plan is None else plan

    def _make(self, operands: OperandsT, request: RequestT) -> tuple[Plan[OperandsT], bool]:
        place = Place.of(operands[0])
        return self.make(operands, request, place), not place.barred


_C = torch._C  # torch.backends.cudnn reads the same flags, each through a Python property

_plans: dict[Any, Any] = {}
_making: dict[Any, threading.Lock] = {}
_lock = threading.Lock()


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
        executors.for_cpu_tensors.get(),
        get_policy(),
        overrides.given.get(),
        (store_generation(), is_strict()) if input.get_device() >= 0 else None,
        _C._get_deterministic_algorithms(),
        _C._get_cudnn_deterministic(),
        _C._get_cudnn_enabled(),
        _C._get_cudnn_benchmark(),
        float32_flag() if input.dtype is torch.float32 else "",
    )


def store_generation() -> int:
    """Changes when the tuner's records change; part of the key of every CUDA call."""
    from grouped_conv.autotune.store import store

    return store.default_store().generation


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
