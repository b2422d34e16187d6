"""The implementation behind the operator of unequal groups: find the plan of a call, or make it once, and run it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import compose
from grouped_conv.by_torch.ragged import ragged_convolution
from grouped_conv.call_values import device_tables
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.ragged_checks import RaggedOperands, check_operands, output_format
from grouped_conv.call_values.ragged_weights import are_flat, in_flat_storage, lie_at, places
from grouped_conv.call_values.request import Request
from grouped_conv.context import overrides, tracing
from grouped_conv.context.policies import get_policy
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ITEM_SIZE, ConvProblem
from grouped_conv.planning import decisions, executors, plan_cache
from grouped_conv.planning.decisions import Conditions
from grouped_conv.planning.executors import BUFFERS, Executor
from grouped_conv.planning.plan import OUTPUT, PREACTIVATION, Result, Steps, native_settings, operand_of
from grouped_conv.planning.plan_cache import placement

WEIGHT_PASS = "cat_weights"
"""What `trace()` calls the copy of scattered weights into one flat storage."""


class RaggedPlan:
    """Runs calls with one key: by ATen, per size bucket, or by the kernel."""

    def __init__(self, operands: RaggedOperands, layout: GroupLayout, request: Request, record: CallRecord) -> None:
        self.group_layout, self.request, self.record = layout, request, record
        self.shape = check_operands(operands, layout, request)
        self.memory_format = output_format(operands)
        self.strides = torch.empty(self.shape, device="meta", memory_format=self.memory_format).stride()

    def run(self, operands: RaggedOperands) -> Result:
        """Compute the call; the operands have the shapes, strides and alignment that the plan was made for."""
        raise NotImplementedError

    def empty_output(self, operands: RaggedOperands) -> Result:
        """Uninitialised outputs in the memory format that the operands call for."""
        input = operands.input
        output = torch.empty(self.shape, dtype=input.dtype, device=input.device, memory_format=self.memory_format)
        return output, torch.empty_like(output) if self.request.save_preactivation else None


class EmptyRaggedPlan(RaggedPlan):
    """A call whose output has no elements."""

    def run(self, operands: RaggedOperands) -> Result:
        """Allocate the outputs."""
        return self.empty_output(operands)


class AtenRaggedPlan(RaggedPlan):
    """A call that ATen computes, one convolution per size bucket, its epilogue in separate operations."""

    def run(self, operands: RaggedOperands) -> Result:
        """Convolve, then scale, bias, residual and activation, in that order."""
        input, weights, bias, scale, _ = operands
        with native_settings(input, self.request.precision):
            early_bias = bias if scale is None else None
            value = ragged_convolution(input, weights, early_bias, self.group_layout, self.request.geometry)
            output, preactivation = compose(value, operands, self.request)
        if not self.request.save_preactivation:
            return self._dense(output, operands), None
        saved = preactivation.clone() if output is preactivation else preactivation
        return self._dense(output, operands), self._dense(saved, operands)

    def _dense(self, value: Tensor, operands: RaggedOperands) -> Tensor:
        return value if value.stride() == self.strides else self.empty_output(operands)[0].copy_(value)


class KernelRaggedPlan(RaggedPlan):
    """A call that our kernel computes in one launch, besides what brings its operands into the order it reads."""

    def __init__(
        self,
        operands: RaggedOperands,
        layout: GroupLayout,
        request: Request,
        problem: ConvProblem,
        config: KernelConfig,
        executor: Executor,
        record: CallRecord,
    ) -> None:
        flat = are_flat(operands.weights, layout)
        call = plan_call(problem, config, _placed(operands))
        names = tuple(launch.name for launch in call.launches)
        names = names if flat else (WEIGHT_PASS, *names)
        record = CallRecord(problem, config.family, record.reason, names, config, record.source)
        super().__init__(operands, layout, request, record)
        device = operands.input.device
        self.copies_weights = not flat
        self.tables = tuple(device_tables.keep(np.asarray(array), device) for array in call.tables.values())
        self.steps = Steps(
            call.launches, call.temporaries, (*BUFFERS, *call.tables), executor, operands.input.get_device()
        )

    def run(self, operands: RaggedOperands) -> Result:
        """Allocate the outputs and temporaries and launch on the current stream of the tensors' device."""
        input, weights, bias, scale, residual = operands
        output, preactivation = self.empty_output(operands)
        weight = in_flat_storage(weights, self.group_layout) if self.copies_weights else weights[0]
        vectors = (vector if vector is None else vector.contiguous() for vector in (bias, scale))
        buffers: list[Any] = [input, weight, *vectors, residual, output, preactivation]
        buffers += map(device_tables.fetch, self.tables)
        self.steps.add_temporaries(buffers, input.device)
        self.steps.launch(buffers)
        return buffers[OUTPUT], buffers[PREACTIVATION]


def run(
    operands: RaggedOperands, layout_text: str, attributes: tuple[Any, ...], as_request: Callable[..., Request]
) -> Result:
    """Run one call.

    Args:
        attributes: the operator's other arguments that are not tensors, hashable.
        as_request: makes the `Request` of them, when a plan has to be made.

    Raises:
        RuntimeError: for operands that make no convolution of this layout.
    """
    plan = find_plan(operands, layout_text, attributes, as_request)
    tracing.record(plan.record)
    return plan.run(operands)


def find_plan(
    operands: RaggedOperands, layout_text: str, attributes: tuple[Any, ...], as_request: Callable[..., Request]
) -> RaggedPlan:
    """The plan of a call, made now if there is none."""
    input, weights, bias, scale, residual = operands
    key = (
        "ragged",
        layout_text,
        attributes,
        placement(input),
        tuple(placement(weight) for weight in weights),
        _lie_flat(weights, layout_text),
        None if bias is None else placement(bias),
        None if scale is None else placement(scale),
        None if residual is None else placement(residual),
        *plan_cache.surroundings(input),
    )
    plan = plan_cache.find(key)
    if plan is not None:
        return plan

    def make() -> tuple[RaggedPlan, bool]:
        barred = decisions.why_nothing_compiles() if input.is_cuda else ""
        return _make(operands, read_layout(layout_text), as_request(*attributes), barred), not barred

    return plan_cache.find_or_make(key, make)


def _lie_flat(weights: tuple[Tensor, ...], layout_text: str) -> bool:
    """Do the weights lie in one flat storage? What is no weight of this layout does not; it is refused later."""
    if not weights or any(weight.dim() != 4 for weight in weights):
        return False
    wanted = _places(layout_text, weights[0].shape[2], weights[0].shape[3])
    return len(wanted) == len(weights) and lie_at(weights, wanted)


@lru_cache(maxsize=1024)
def _places(layout_text: str, kernel_h: int, kernel_w: int) -> tuple[tuple[int, Any], ...]:
    return places(read_layout(layout_text), (kernel_h, kernel_w))


def _make(operands: RaggedOperands, layout: GroupLayout, request: Request, barred: str) -> RaggedPlan:
    shape = check_operands(operands, layout, request)
    settled = decisions.with_settled_precision(request, operands.input.dtype)
    problem = describe(operands, layout, settled)
    known = None if isinstance(problem, str) else problem
    if 0 in shape:
        record = CallRecord(known, "empty", "the output has no elements")
        return EmptyRaggedPlan(operands, layout, request, record)
    device = operands.input.get_device()
    executor = executors.gpu_executor() if device >= 0 else executors.executor_of_cpu_tensors()
    conditions = Conditions(get_policy(), request.backend, executor, overrides.given_config("forward"), barred)
    decision = decisions.decide(problem, conditions, device)
    record = CallRecord(known, "aten", decision.reason, source=decision.source)
    if decision.config is None or known is None or executor is None:
        return AtenRaggedPlan(operands, layout, request, record)
    known = decisions.adapted(known, executor)
    return KernelRaggedPlan(operands, layout, request, known, decision.config, executor, record)


def describe(operands: RaggedOperands, layout: GroupLayout, request: Request) -> ConvProblem | str:
    """The call as a `ConvProblem`, or why it is none."""
    input, weights, bias, scale, residual = operands
    dtype = str(input.dtype).removeprefix("torch.")
    if dtype not in ITEM_SIZE:
        return f"the kernels do not compute {dtype}"
    geometry = request.geometry
    try:
        return ConvProblem(
            batch=input.shape[0],
            layout=layout,
            in_size=(input.shape[2], input.shape[3]),
            kernel_size=(weights[0].shape[2], weights[0].shape[3]),
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            dtype=dtype,
            precision=request.precision,
            input_channels_last=is_channels_last(input.shape, input.stride()),
            weight_channels_last=any(is_channels_last(weight.shape, weight.stride()) for weight in weights),
            epilogue=Epilogue(
                request.activation,
                request.negative_slope,
                bias is not None,
                scale is not None,
                residual is not None,
                request.save_preactivation,
            ),
        )
    except ValueError as error:
        return str(error)


def _placed(operands: RaggedOperands) -> dict[str, Operand]:
    """The operands but for the weights as they lie in memory; the weights lie in an aligned flat storage by then."""
    named = operands._asdict()
    del named["weights"]
    return {name: operand_of(tensor) for name, tensor in named.items() if tensor is not None}
