"""The implementation behind the convolution operators: find the plan of a call, or make it once, and run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grouped_conv.by_torch.gradients import torch_convolution
from grouped_conv.call_values.checks import check_operands
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context import overrides, tracing
from grouped_conv.context.policies import get_policy
from grouped_conv.context.tracing import CallRecord
from grouped_conv.planning import decisions, executors, plan_cache
from grouped_conv.planning.decisions import Conditions
from grouped_conv.planning.plan import AtenPlan, EmptyPlan, Plan, Result, make_kernel_plan
from grouped_conv.planning.plan_cache import placement


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
    plan = plan_cache.find(key)
    return _first(key, operands, as_request(*attributes)) if plan is None else plan


def _plan_key(operands: Operands, attributes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Everything that may change the plan of a call."""
    input, weight, bias, scale, residual = operands
    return (
        attributes,
        placement(input),
        placement(weight),
        None if bias is None else placement(bias),
        None if scale is None else placement(scale),
        None if residual is None else placement(residual),
        *plan_cache.surroundings(input),
    )


def _first(key: Any, operands: Operands, request: Request) -> Plan:
    def make() -> tuple[Plan, bool]:
        barred = decisions.why_nothing_compiles() if operands.input.is_cuda else ""
        return _make(operands, request, barred), not barred

    return plan_cache.find_or_make(key, make)


def _make(operands: Operands, request: Request, barred: str) -> Plan:
    shape = _checked(operands, request)
    problem = decisions.describe(operands, decisions.with_settled_precision(request, operands.input.dtype))
    known = None if isinstance(problem, str) else problem
    if 0 in shape:
        return EmptyPlan(shape, request, known)
    device = operands.input.get_device()
    executor = executors.gpu_executor() if device >= 0 else executors.executor_of_cpu_tensors()
    conditions = Conditions(get_policy(), request.backend, executor, overrides.given_config("forward"), barred)
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
