"""The implementation behind `grouped_conv::separable_conv2d`: one kernel or two calls, decided once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.checks import check_operands
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.separable_request import SeparableOperands, SeparableRequest
from grouped_conv.context import overrides, tracing
from grouped_conv.context.policies import get_policy
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, one_warp, slices_of, why_invalid
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.ops import conv2d as ops
from grouped_conv.planning import decisions, executors, plan_cache
from grouped_conv.planning.executors import DriverExecutor, Executor, InterpreterExecutor
from grouped_conv.planning.live_device import live_device
from grouped_conv.planning.plan import Steps, gathered_operands, placed_operands
from grouped_conv.planning.plan_cache import placement

NAMES = (*SeparableOperands._fields, "output")
"""Buffers of a call, in the order that plans hold them; temporaries follow."""

Decision = tuple[SeparableConfig | None, str, str]
"""The fused kernel's configuration or None for two calls, the reason, and the configuration's source."""


class TwoCalls:
    """A call that two convolutions compute, each on the path that is chosen for it."""

    def __init__(self, problem: SeparableProblem | None, request: SeparableRequest, reason: str) -> None:
        self.request = request
        self.record = CallRecord(problem, "two_calls", reason)

    def run(self, operands: SeparableOperands) -> Tensor:
        """Run the grouped convolution, then the 1x1 convolution."""
        with torch._C._AutoDispatchBelowAutograd():
            hidden = ops.call(operands.first, self.request.first)
            assert isinstance(hidden, Tensor)
            output = ops.call(operands.second(hidden), self.request.second)
            assert isinstance(output, Tensor)
        return output


class FusedPlan:
    """A call that the fused kernel computes."""

    def __init__(
        self,
        problem: SeparableProblem,
        config: SeparableConfig,
        operands: SeparableOperands,
        executor: Executor,
        reason: str,
        source: str,
    ) -> None:
        from grouped_conv.kernels.separable.forward import plan_separable_call

        launches, temporaries = plan_separable_call(problem, config, placed_operands(operands))
        self.shape = problem.output_shape
        self.layout = torch.channels_last if problem.output_channels_last else torch.contiguous_format
        self.gathered = gathered_operands(operands)
        self.steps = Steps(launches, temporaries, NAMES, executor, operands.input.get_device())
        names = tuple(launch.name for launch in launches)
        self.record = CallRecord(problem, config.family, reason, names, config, source)

    def run(self, operands: SeparableOperands) -> Tensor:
        """Allocate the output and launch on the current stream of the tensors' device."""
        dtype, device = operands.input.dtype, operands.input.device
        output = torch.empty(self.shape, dtype=dtype, device=device, memory_format=self.layout)
        buffers: list[Any] = [*operands, output]
        for index in self.gathered:
            buffers[index] = buffers[index].contiguous()
        self.steps.add_temporaries(buffers, device)
        self.steps.launch(buffers)
        return output


def run(
    operands: SeparableOperands, attributes: tuple[Any, ...], as_request: Callable[..., SeparableRequest]
) -> Tensor:
    """Run one call; a trace shows the fused kernel's record, or the reason for two calls and the records of both.

    Raises:
        RuntimeError: in ATen's words for operands that make no convolution.
    """
    key = (
        "separable",
        attributes,
        *(None if tensor is None else placement(tensor) for tensor in operands),
        *plan_cache.surroundings(operands.input),
    )
    plan = plan_cache.find(key)
    if plan is None:
        plan = plan_cache.find_or_make(key, lambda: _make(operands, as_request(*attributes)))
    tracing.record(plan.record)
    output: Tensor = plan.run(operands)
    return output


def check(operands: SeparableOperands, request: SeparableRequest) -> tuple[Tensor, tuple[int, int, int, int]]:
    """(an uninitialised tensor like the one between the convolutions, the output's shape).

    Raises:
        RuntimeError: in ATen's words where it has some.
    """
    shape = check_operands(operands.first, request.first)
    hidden = layouts.empty_output(operands.input, operands.weight, shape)
    return hidden, check_operands(operands.second(hidden), request.second)


def _make(operands: SeparableOperands, request: SeparableRequest) -> tuple[TwoCalls | FusedPlan, bool]:
    """The plan, and whether it may be kept."""
    shape = check(operands, request)[1]
    device = operands.input.get_device()
    problem = describe(operands, request)
    if isinstance(problem, str):
        return TwoCalls(None, request, problem), True
    if 0 in shape:
        return TwoCalls(problem, request, "the output has no elements"), True
    barred = decisions.why_nothing_compiles() if device >= 0 else ""
    if barred:
        return TwoCalls(problem, request, barred), False
    executor = executors.gpu_executor() if device >= 0 else executors.executor_of_cpu_tensors()
    config, reason, source = decide(problem, request.backend, executor, device)
    if config is None or executor is None:
        return TwoCalls(problem, request, reason), True
    return FusedPlan(_adapted(problem, executor), config, operands, executor, reason, source), True


def describe(operands: SeparableOperands, request: SeparableRequest) -> SeparableProblem | str:
    """The call as a problem, or why it is none that the kernel knows."""
    first = decisions.describe(operands.first, decisions.with_settled_precision(request.first, operands.input.dtype))
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


def decide(problem: SeparableProblem, backend: str, executor: Executor | None, device: int) -> Decision:
    """One kernel or two calls, and why.

    Raises:
        ValueError: when the configuration that `using_config` gave is one of the fused kernel and cannot run.
    """
    if backend == "aten":
        return None, "two calls: backend='aten' was asked for", ""
    if executor is None:
        return None, "two calls: the tensors are on the CPU, outside grouped_conv.interpret()", ""
    given = overrides.given_config("forward")
    if isinstance(given, SeparableConfig):
        reason = why_invalid(problem, given)
        if reason is not None:
            raise ValueError(f"configuration {given} cannot run {problem}: {reason}")
        return given, "a configuration was given", "given"
    if given is not None:
        return None, f"two calls: the configuration that was given is of {given.family}", ""
    if device < 0 and isinstance(executor, DriverExecutor) and executor.is_native:
        config = one_warp(problem)
        if slices_of(problem, config).pack > 1:
            return None, "two calls: packs of groups with their cold branch take minutes to compile for a CPU", ""
        return config, f"run by {executor.name}", "heuristic"
    spec = _device_spec(executor, device)
    if spec is None:
        return None, "two calls: no device of this GPU's architecture is known (see grouped_conv.DeviceSpec.all())", ""
    return _planned(problem, spec, _why_unrecorded(backend, device))


def _planned(problem: SeparableProblem, device: DeviceSpec, barred: str) -> Decision:
    """The planner's answer; two calls where something bars the fused kernel, with the answer beside the reason."""
    from grouped_conv.autotune.model.fusion import plan_fusion

    try:
        fusion = plan_fusion(problem, device)
    except ValueError as error:  # a convolution that no kernel computes, for example
        return None, f"two calls: {error}", ""
    if barred:
        return None, f"two calls: {barred} (the planner, for {device.key}: {fusion.reason})", ""
    return fusion.config, f"{fusion.reason} (for {device.key})", "predicted" if fusion.is_fused else ""


def _why_unrecorded(backend: str, device: int) -> str:
    """Why the planner's answer is not followed on a GPU: records are kept of single convolutions only."""
    policy = get_policy()
    if device < 0 or backend == "kernel" or policy == "kernels":
        return ""
    return f"under policy {policy!r} a kernel must have records, and the fused kernel has none"


def _device_spec(executor: Executor, device: int) -> DeviceSpec | None:
    if device >= 0:
        return live_device(device)
    if isinstance(executor, InterpreterExecutor):
        return DeviceSpec.get(executor.device)
    assert isinstance(executor, DriverExecutor)
    target = executor.driver.get_current_target()
    return DeviceSpec.get(f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch))


def _adapted(problem: SeparableProblem, executor: Executor) -> SeparableProblem:
    return replace(problem, first=decisions.adapted(problem.first, executor))
