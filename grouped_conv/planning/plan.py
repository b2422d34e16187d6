"""The three ways a convolution runs once it has been decided: nothing to do, by ATen, or by our kernels.

Plans hold kernels, grids and integers. They never hold tensors, pointers, packed weights or workspaces, so that one
plan can serve every call with the same key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import aten_convolution, compose, shuffle_channels
from grouped_conv.by_torch.ragged import ragged_convolution
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.ragged_weights import are_flat, in_flat_storage
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.decisions import NO_ELEMENTS, Decision
from grouped_conv.planning.executors import Executor
from grouped_conv.planning.steps import Steps, gathered_operands, placed_operands

AnyOperands = Operands | RaggedOperands
Result = tuple[Tensor, Tensor | None]
"""The output, and the preactivation where the request says to save it."""

WEIGHT = Operands._fields.index("weight")
WEIGHT_PASS = "cat_weights"
"""What `trace()` calls the copy of scattered weights into one flat storage."""


class Outputs(NamedTuple):
    """What a call allocates for its results.

    Attributes:
        saves: also the activation's argument?
    """

    shape: tuple[int, int, int, int]
    layout: torch.memory_format
    saves: bool

    def empty(self, input: Tensor) -> Result:
        """Uninitialised results of the input's dtype, on its device."""
        output = torch.empty(self.shape, dtype=input.dtype, device=input.device, memory_format=self.layout)
        return output, torch.empty_like(output) if self.saves else None


class EmptyPlan:
    """A call whose output has no elements: nothing is launched."""

    def __init__(self, outputs: Outputs, problem: ConvProblem | None) -> None:
        self.outputs = outputs
        self.records = (CallRecord(problem, "empty", NO_ELEMENTS),)

    def run(self, operands: AnyOperands) -> Result:
        """Allocate the outputs."""
        return self.outputs.empty(operands.input)


class AtenPlan:
    """A call that ATen computes, its epilogue in separate operations; strides are those of the kernels' path.

    Args:
        layout: unequal groups, which run as one convolution per size of groups.
    """

    def __init__(
        self, outputs: Outputs, input: Tensor, request: Request, layout: GroupLayout | None, record: CallRecord
    ) -> None:
        self.outputs, self.request, self.layout, self.records = outputs, request, layout, (record,)
        self.strides = torch.empty(outputs.shape, device="meta", memory_format=outputs.layout).stride()
        self.device_type = input.device.type
        self.follows_flags = request.precision == "default" or input.dtype != torch.float32

    def run(self, operands: AnyOperands) -> Result:
        """Convolve, then scale, bias, residual and activation, in that order."""
        if not self.follows_flags or torch.is_autocast_enabled(self.device_type):
            with native_settings(operands.input, self.request.precision):
                return self._compute(operands)
        return self._compute(operands)

    def _compute(self, operands: AnyOperands) -> Result:
        input, weight, bias, scale, _ = operands
        request, early_bias = self.request, bias if scale is None else None
        if self.layout is None:
            input = shuffle_channels(input, request.input_shuffle)
            value = aten_convolution(input, weight, early_bias, request.geometry)  # type: ignore[arg-type]
        else:
            value = ragged_convolution(input, weight, early_bias, self.layout, request.geometry)  # type: ignore[arg-type]
        output, preactivation = compose(value, operands, request)
        if not request.save_preactivation:
            return self._dense(output), None
        return self._dense(output), self._dense(output.clone() if output is preactivation else preactivation)

    def _dense(self, value: Tensor) -> Tensor:
        return value if value.stride() == self.strides else self.outputs.empty(value)[0].copy_(value)


@contextmanager
def native_settings(input: Tensor, precision: str) -> Iterator[None]:
    """Autocast off, because operands have their final dtypes; float32 products as `precision` says, if it says."""
    with ExitStack() as stack:
        if torch.is_autocast_enabled(input.device.type):
            stack.enter_context(torch.autocast(input.device.type, enabled=False))
        if precision != "default" and input.is_cuda and input.dtype == torch.float32:
            stack.enter_context(cudnn_precision(precision))
        yield


@contextmanager
def cudnn_precision(precision: str) -> Iterator[None]:
    """Float32 convolutions of cuDNN at `precision` inside the block (process-wide, as torch's flag is)."""
    flags = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = flags.fp32_precision
    flags.fp32_precision = precision
    try:
        yield
    finally:
        flags.fp32_precision = before


class KernelPlan:
    """A call that our kernels compute: its launches, prepared, and the buffers between them.

    Args:
        operands: of any operator, a named tuple; the launches are planned for their strides and alignment.
        call: the launches.
        layout: unequal groups, whose weights the kernel reads from one flat storage.
    """

    def __init__(
        self,
        outputs: Outputs,
        operands: Any,
        call: Call,
        decision: Decision,
        executor: Executor,
        layout: GroupLayout | None = None,
    ) -> None:
        config = call.config
        self.outputs, self.layout, self.gathered = outputs, layout, gathered_operands(operands)
        self.copies_weights = layout is not None and not are_flat(operands[WEIGHT], layout)
        names = ((WEIGHT_PASS,) if self.copies_weights else ()) + tuple(launch.name for launch in call.launches)
        self.records = (CallRecord(call.problem, config.family, decision.reason, names, config, decision.source),)
        fields = operands._fields if layout is None else Operands._fields
        buffers = (*fields, "output", "preactivation")
        self.steps = Steps(call.launches, buffers, executor, operands.input.device, call.temporaries, call.tables)

    def run(self, operands: Any) -> Result:
        """Allocate the outputs and temporaries and launch on the current stream of the tensors' device."""
        buffers = self.allocate(operands)
        self.steps.launch(buffers)
        return buffers[len(operands)], buffers[len(operands) + 1]

    def allocate(self, operands: Any) -> list[Any]:
        """The buffers of one call, in the order of the steps' names."""
        buffers: list[Any] = [*operands, *self.outputs.empty(operands.input)]
        if self.layout is not None:
            weights = buffers[WEIGHT]
            buffers[WEIGHT] = in_flat_storage(weights, self.layout) if self.copies_weights else weights[0]
        for index in self.gathered:
            buffers[index] = buffers[index].contiguous()
        self.steps.complete(buffers, operands.input.device)
        return buffers


def plan_operands(problem: ConvProblem, config: KernelConfig, operands: AnyOperands) -> Call:
    """The launches for the strides and alignment of these operands, weights of unequal groups in a flat storage."""
    return plan_call(problem, config, placed_operands(operands))
