"""The implementation behind the operators: find the plan of a call, or make it once, and run it.

Looking a plan up touches no store and compiles nothing. A plan is made on the first call with its key, by one thread
while others wait; a forked child starts with none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grouped_conv import decisions, executors, overrides, records, tracing
from grouped_conv.checks import check_operands
from grouped_conv.decisions import Conditions
from grouped_conv.gradients import float32_flag, torch_convolution
from grouped_conv.plan import AtenPlan, EmptyPlan, Plan, Result, make_kernel_plan
from grouped_conv.policies import get_policy
from grouped_conv.request import Operands, Request
from grouped_conv.tracing import CallRecord

MAX_PLANS = 16_384
"""Plans kept; beyond it the oldest go. Compiled kernels stay."""

_C = torch._C  # torch.backends.cudnn reads the same flags, each through a Python property

_plans: dict[Any, Plan] = {}
_making: dict[Any, threading.Lock] = {}
_lock = threading.Lock()


def run(operands: Operands, attributes: tuple[Any, ...], as_request: Callable[..., Request]) -> Result:
    """Run one call.

    Args:
        attributes: the operator's arguments that are not tensors, hashable.
        as_request: makes the `Request` of them, when a plan has to be made.

    Raises:
        RuntimeError: in ATen's words for operands that make no convolution.
    """
    plan = find_plan(operands, attributes, as_request)
    tracing.record(plan.record)
    return plan.run(operands)


def find_plan(operands: Operands, attributes: tuple[Any, ...], as_request: Callable[..., Request]) -> Plan:
    """The plan of a call, made now if there is none."""
    key = _plan_key(operands, attributes)
    plan = _plans.get(key)
    return _first(key, operands, as_request(*attributes)) if plan is None else plan


def _plan_key(operands: Operands, attributes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Everything that may change the plan of a call."""
    input, weight, bias, scale, residual = operands
    device = input.get_device()
    return (
        attributes,
        _placement(input),
        _placement(weight),
        None if bias is None else _placement(bias),
        None if scale is None else _placement(scale),
        None if residual is None else _placement(residual),
        executors.executor_of_cpu_tensors(),
        get_policy(),
        overrides.given_config(),
        records.generation() if device >= 0 else 0,
        _C._get_deterministic_algorithms(),
        _C._get_cudnn_deterministic(),
        _C._get_cudnn_enabled(),
        _C._get_cudnn_benchmark(),
        float32_flag() if input.dtype is torch.float32 else "",
    )


def _placement(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() & 15, tensor.get_device()


def _first(key: Any, operands: Operands, request: Request) -> Plan:
    """Make the plan, unless another thread has made it in the meantime."""
    with _lock:
        making = _making.setdefault(key, threading.Lock())
    with making:
        plan = _plans.get(key)
        if plan is not None:
            return plan
        try:
            barred = decisions.why_nothing_compiles() if operands.input.is_cuda else ""
            plan = _make(operands, request, barred)
            if not barred:
                _keep(key, plan)
        finally:
            with _lock:
                _making.pop(key, None)
        return plan


def _keep(key: Any, plan: Plan) -> None:
    with _lock:
        while len(_plans) >= MAX_PLANS:
            del _plans[next(iter(_plans))]
        _plans[key] = plan


def _make(operands: Operands, request: Request, barred: str) -> Plan:
    shape = _checked(operands, request)
    problem = decisions.describe(operands, decisions.with_settled_precision(request, operands.input.dtype))
    known = None if isinstance(problem, str) else problem
    if 0 in shape:
        return EmptyPlan(shape, request, known)
    device = operands.input.get_device()
    executor = executors.gpu_executor() if device >= 0 else executors.executor_of_cpu_tensors()
    conditions = Conditions(get_policy(), request.backend, executor, overrides.given_config(), barred)
    decision = decisions.decide(problem, conditions, device)
    record = CallRecord(known, "aten", decision.reason, source=decision.source)
    if decision.config is None or known is None or executor is None:
        return AtenPlan(operands, shape, request, record)
    return make_kernel_plan(decisions.adapted(known, executor), decision.config, operands, executor, device, record)


def _checked(operands: Operands, request: Request) -> tuple[int, int, int, int]:
    """The output's shape; what ATen would refuse too is refused in its words."""
    try:
        return check_operands(operands, request)
    except RuntimeError:
        if operands.weight.dim() == 4 and operands.weight.shape[1] > 0:
            torch_convolution(operands, request.geometry)
        raise


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
