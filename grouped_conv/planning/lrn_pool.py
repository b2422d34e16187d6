"""Plans of LRN with max-pooling: one launch of our kernel, or torch's operations step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv.by_torch.lrn_pool import LrnPoolRequest, lrn_pool_by_torch
from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.problem import ITEM_SIZE
from grouped_conv.planning.decisions import NO_ELEMENTS, Conditions, Decision, Kind, decide, dtype_name
from grouped_conv.planning.executors import Executor, Place
from grouped_conv.planning.plan import KernelPlan, Outputs
from grouped_conv.planning.plan_cache import Planner
from grouped_conv.planning.steps import operand_of


class LrnPoolOperands(NamedTuple):
    """The tensor of one call, `(N, C, H, W)`."""

    input: Tensor


class TorchPlan:
    """A call that torch's own operations compute, autocast off because dtypes are final here."""

    def __init__(self, request: LrnPoolRequest, record: CallRecord) -> None:
        self.request, self.records = request, (record,)

    def run(self, operands: LrnPoolOperands) -> tuple[Tensor]:
        """Step by step, in the memory format that the fake implementation promises."""
        input = operands.input
        with torch.autocast(input.device.type, enabled=False):
            output = lrn_pool_by_torch(input, self.request)
        promised = empty_output(input, output.shape)
        return (output if output.stride() == promised.stride() and output is not input else promised.copy_(output),)


def empty_output(input: Tensor, shape: Sequence[int], device: Any = None) -> Tensor:
    """An uninitialised output in the memory format of the input."""
    layout = layouts.output_format(input)
    return torch.empty(tuple(shape), dtype=input.dtype, device=device or input.device, memory_format=layout)


def _make(operands: LrnPoolOperands, request: LrnPoolRequest, place: Place) -> TorchPlan | KernelPlan:
    problem = describe(operands.input, request)
    if isinstance(problem, str):
        if request.backend == "kernel":
            raise RuntimeError(f"backend='kernel' was asked for, but {problem}")
        return TorchPlan(request, CallRecord(None, "aten", problem))
    if problem.batch == 0:
        return TorchPlan(request, CallRecord(problem, "empty", NO_ELEMENTS))
    decision = decide(problem, Conditions.of(place, request.backend), LRN_POOL)
    if decision.config is None or place.executor is None:
        return TorchPlan(request, CallRecord(problem, "aten", decision.reason))
    outputs = Outputs(problem.output_shape, layouts.output_format(operands.input), saves=False)
    return KernelPlan(outputs, operands, _planned(problem, decision, operands.input), decision, place.executor)


def _planned(problem: LrnPoolProblem, decision: Decision, input: Tensor) -> Call:
    from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool

    config: Any = decision.config
    output = empty_output(input, problem.output_shape, device="meta")
    placed = {"input": operand_of(input), "output": operand_of(output)}
    return Call(problem, config, (plan_lrn_pool(problem, config, placed),), ())


def describe(input: Tensor, request: LrnPoolRequest) -> LrnPoolProblem | str:
    """The call as an `LrnPoolProblem`, or why it is none that the kernels know."""
    dtype = dtype_name(input)
    if dtype not in ITEM_SIZE:
        return f"the kernels do not compute {dtype}"
    values = request._asdict()
    del values["backend"]
    try:
        return LrnPoolProblem(
            batch=input.shape[0],
            channels=input.shape[1],
            in_size=(input.shape[2], input.shape[3]),
            dtype=dtype,
            channels_last=input.shape[1] == 1 or layouts.is_channels_last(input.shape, input.stride()),
            **values,
        )
    except ValueError as error:
        return str(error)


def _refuse(conditions: Conditions, obstacle: str) -> None:
    if conditions.insists:
        raise RuntimeError(f"{conditions.insists} cannot run the LRN + pool kernel: {obstacle}")


def _choose(problem: LrnPoolProblem, conditions: Conditions, executor: Executor) -> Decision:
    """A contiguous input goes to torch: packing it would move as many bytes as the kernel itself."""
    if executor.follows_records and not conditions.insists:
        return Decision(None, f"policy {conditions.policy!r} has no measured record of LRN + pool: it is not tuned yet")
    config: Any = executor.choose(problem)
    reason = why_invalid(problem, config)
    if reason is None:
        return Decision(config, f"run by {executor.name}", "heuristic")
    if conditions.backend == "kernel":
        raise RuntimeError(f"backend='kernel' was asked for, but {reason}")
    return Decision(None, reason)


LRN_POOL = Kind(False, _refuse, _choose)
PLANNER = Planner("lrn_max_pool2d", _make)
