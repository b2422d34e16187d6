"""Plans of a grouped convolution followed by a 1x1 convolution: one kernel, or two calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.checks import check_operands
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.separable_request import SeparableOperands, SeparableRequest
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.separable.forward_rules import one_warp, slices_of
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.planning import forward
from grouped_conv.planning.decisions import (
    NO_ELEMENTS,
    UNKNOWN_GPU,
    Conditions,
    Decision,
    Kind,
    adapted,
    decide,
    describe,
    with_settled_precision,
)
from grouped_conv.planning.executors import DriverExecutor, Executor, Place
from grouped_conv.planning.plan import KernelPlan, Outputs
from grouped_conv.planning.plan_cache import Planner
from grouped_conv.planning.steps import placed_operands


class TwoCalls:
    """A call that two convolutions compute, each on the path that is chosen for it."""

    def __init__(self, problem: SeparableProblem | None, request: SeparableRequest, reason: str) -> None:
        self.request = request
        self.records = (CallRecord(problem, "two_calls", reason),)

    def run(self, operands: SeparableOperands) -> tuple[Tensor]:
        """Run the grouped convolution, then the 1x1 convolution."""
        hidden = forward.UNIFORM.run(operands.first, self.request.first)[0]
        assert hidden is not None
        output = forward.UNIFORM.run(operands.second(hidden), self.request.second)[0]
        assert output is not None
        return (output,)


def check(operands: SeparableOperands, request: SeparableRequest) -> tuple[Tensor, tuple[int, int, int, int]]:
    """(an uninitialised tensor like the one between the convolutions, the output's shape).

    Raises:
        RuntimeError: in ATen's words where it has some.
    """
    shape = check_operands(operands.first, request.first)
    hidden = layouts.empty_output(operands.input, operands.weight, shape)
    return hidden, check_operands(operands.second(hidden), request.second)


def _make(operands: SeparableOperands, request: SeparableRequest, place: Place) -> TwoCalls | KernelPlan:
    shape = check(operands, request)[1]
    problem = describe_block(operands, request)
    if isinstance(problem, str):
        return TwoCalls(None, request, problem)
    if 0 in shape or place.barred:
        return TwoCalls(problem, request, NO_ELEMENTS if 0 in shape else place.barred)
    decision = decide(problem, Conditions.of(place, request.backend), SEPARABLE)
    if decision.config is None or place.executor is None:
        return TwoCalls(problem, request, two_calls(decision.reason))
    problem = replace(problem, first=adapted(problem.first, place.executor))
    layout = torch.channels_last if problem.output_channels_last else torch.contiguous_format
    outputs = Outputs(problem.output_shape, layout, saves=False)
    return KernelPlan(outputs, operands, _planned(problem, decision, operands), decision, place.executor)


def _planned(problem: SeparableProblem, decision: Decision, operands: SeparableOperands) -> Call:
    from grouped_conv.kernels.separable.forward import plan_separable_call

    config: Any = decision.config
    return Call(problem, config, *plan_separable_call(problem, config, placed_operands(operands)))


def describe_block(operands: SeparableOperands, request: SeparableRequest) -> SeparableProblem | str:
    """The call as a problem, or why it is none that the kernel knows."""
    first = describe(operands.first, with_settled_precision(request.first, operands.input.dtype))
    if isinstance(first, str):
        return first
    weight = operands.pointwise_weight
    epilogue = Epilogue(
        request.pointwise_activation,
        request.pointwise_negative_slope,
        operands.pointwise_bias is not None,
        operands.pointwise_scale is not None,
        operands.residual is not None,
    )
    return SeparableProblem(first, weight.shape[0], epilogue, is_channels_last(weight.shape, weight.stride()))


def _choose(problem: SeparableProblem, conditions: Conditions, executor: Executor) -> Decision:
    """What the planner says, where nothing forbids the fused kernel; the reason has the planner's answer either way."""
    from grouped_conv.autotune.model.fusion import plan_fusion

    if conditions.given is not None:
        return Decision(None, f"the configuration that was given is of {conditions.given.family}")
    if isinstance(executor, DriverExecutor) and executor.is_native:
        config = one_warp(problem)
        if slices_of(problem, config).pack > 1:
            return Decision(None, "packs of groups with their cold branch take minutes to compile for a CPU")
        return Decision(config, f"run by {executor.name}", "heuristic")
    device = conditions.place.spec
    if device is None:
        return Decision(None, UNKNOWN_GPU)
    try:
        fusion = plan_fusion(problem, device)
    except ValueError as error:  # a convolution that no kernel computes, for example
        return Decision(None, str(error))
    if executor.follows_records and not conditions.insists:  # records are kept of single convolutions only
        barred = f"under policy {conditions.policy!r} a kernel must have records, and the fused kernel has none"
        return Decision(None, f"{barred} (the planner, for {device.key}: {fusion.reason})")
    if not fusion.is_fused:
        return Decision(None, f"{fusion.reason} (for {device.key})")
    return Decision(fusion.config, f"{fusion.reason} (for {device.key})", "predicted")


def two_calls(reason: str) -> str:
    """A reason against the fused kernel, as records show it; the planner's own says so already."""
    return f"two calls: {reason.removeprefix('two calls: ')}"


def _refuse(conditions: Conditions, obstacle: str) -> None:
    """Nothing to refuse: the two calls decide for themselves."""


SEPARABLE = Kind(False, _refuse, _choose)
PLANNER = Planner("separable_conv2d", _make)
