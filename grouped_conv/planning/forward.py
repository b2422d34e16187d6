"""Plans of the forward pass, for equal and unequal groups: check the operands, decide, prepare."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from grouped_conv.by_torch.gradients import torch_convolution
from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values import ragged_checks
from grouped_conv.call_values.checks import check_operands
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.ragged_weights import lie_at, places
from grouped_conv.call_values.request import Operands, RaggedRequest, Request
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.planning.decisions import (
    CONVOLUTION,
    Conditions,
    adapted,
    decide,
    describe,
    with_settled_precision,
)
from grouped_conv.planning.executors import Place
from grouped_conv.planning.plan import AtenPlan, EmptyPlan, KernelPlan, Outputs, plan_operands
from grouped_conv.planning.plan_cache import Plan, Planner


def outputs_of(operands: Operands, request: Request) -> Outputs:
    """The outputs of a call with equal groups, whose operands are checked.

    Raises:
        RuntimeError: in ATen's words where it has some.
    """
    shape = check_operands(operands, request)
    return Outputs(shape, layouts.output_format(operands.input, operands.weight), request.save_preactivation)


def ragged_outputs(operands: RaggedOperands, asked: RaggedRequest) -> Outputs:
    """The outputs of a call with unequal groups, whose operands are checked.

    Raises:
        RuntimeError: for operands that make no convolution of this layout, naming the sizes.
    """
    shape = ragged_checks.check_operands(operands, read_layout(asked.layout), asked.request)
    layout = layouts.output_format(operands.input, *operands.weights)
    return Outputs(shape, layout, asked.request.save_preactivation)


def _make_uniform(operands: Operands, request: Request, place: Place) -> Plan[Any]:
    try:
        outputs = outputs_of(operands, request)
    except RuntimeError:
        if operands.weight.dim() == 4 and operands.weight.shape[1] > 0:
            torch_convolution(operands, request.geometry)  # what ATen would refuse too is refused in its words
        raise
    return _make(outputs, operands, request, place, None)


def _make_ragged(operands: RaggedOperands, asked: RaggedRequest, place: Place) -> Plan[Any]:
    return _make(ragged_outputs(operands, asked), operands, asked.request, place, read_layout(asked.layout))


def _make(
    outputs: Outputs, operands: Operands | RaggedOperands, request: Request, place: Place, layout: GroupLayout | None
) -> Plan[Any]:
    problem = describe(operands, with_settled_precision(request, operands.input.dtype), layout)
    known = None if isinstance(problem, str) else problem
    if 0 in outputs.shape:
        return EmptyPlan(outputs, known)
    decision = decide(problem, Conditions.of(place, request.backend), CONVOLUTION)
    if decision.config is None or known is None or place.executor is None:
        record = CallRecord(known, "aten", decision.reason, source=decision.source)
        return AtenPlan(outputs, operands.input, request, layout, record)
    call = plan_operands(adapted(known, place.executor), decision.config, operands)
    return KernelPlan(outputs, operands, call, decision, place.executor, layout)


def _lie_flat(operands: RaggedOperands, asked: RaggedRequest) -> bool:
    """Are the weights views of one flat storage? Weights that are not of this layout are refused later."""
    weights = operands.weights
    if not weights or not all(map(_is_4d, weights)):
        return False
    wanted = _places(asked.layout, weights[0].shape[2], weights[0].shape[3])
    return len(wanted) == len(weights) and lie_at(weights, wanted)


def _is_4d(tensor: Tensor) -> bool:
    return tensor.dim() == 4


@lru_cache(maxsize=1024)
def _places(layout_text: str, kernel_h: int, kernel_w: int) -> tuple[tuple[int, Any], ...]:
    return places(read_layout(layout_text), (kernel_h, kernel_w))


UNIFORM = Planner("conv2d", _make_uniform)
RAGGED = Planner("ragged_conv2d", _make_ragged, also=_lie_flat)
