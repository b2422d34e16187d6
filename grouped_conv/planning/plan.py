"""A call that has been decided and prepared: what remains is to allocate and launch.

Plans hold kernels, grids and integers. They never hold tensors, pointers, packed weights or workspaces, so that a plan
can be shared by every call with the same key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import aten_convolution, compose, shuffle_channels
from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launching.calls import Call, Temporary
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.executors import BUFFERS, Executor

Result = tuple[Tensor, Tensor | None]
"""The output, and the preactivation where the request says to save it."""

MAX_ALIGNMENT = 16
OUTPUT, PREACTIVATION = BUFFERS.index("output"), BUFFERS.index("preactivation")


class Plan(Protocol):
    """Runs one call; `record` is what `trace()` shows of it."""

    record: CallRecord

    def run(self, operands: Operands) -> Result:
        """Compute the call; the operands have the shapes, strides and alignment that the plan was made for."""


class EmptyPlan:
    """A call whose output has no elements: nothing is launched."""

    def __init__(self, shape: tuple[int, ...], request: Request, problem: ConvProblem | None) -> None:
        self.shape, self.saves = shape, request.save_preactivation
        self.record = CallRecord(problem, "empty", "the output has no elements")

    def run(self, operands: Operands) -> Result:
        """Allocate the outputs."""
        output = layouts.empty_output(operands.input, operands.weight, self.shape)
        return output, torch.empty_like(output) if self.saves else None


class AtenPlan:
    """A call that ATen computes, its epilogue in separate operations; strides are those of the kernels' path."""

    def __init__(self, operands: Operands, shape: tuple[int, ...], request: Request, record: CallRecord) -> None:
        input = operands.input
        self.layout = layouts.output_format(input, operands.weight)
        self.strides = torch.empty(shape, device="meta", memory_format=self.layout).stride()
        self.device_type = input.device.type
        self.follows_flags = request.precision == "default" or input.dtype != torch.float32
        self.shape, self.request, self.record = shape, request, record

    def run(self, operands: Operands) -> Result:
        """Convolve by `aten.convolution`, then scale, bias, residual and activation, in that order."""
        if not self.follows_flags or torch.is_autocast_enabled(self.device_type):
            with native_settings(operands.input, self.request.precision):
                return self._compute(operands)
        return self._compute(operands)

    def _compute(self, operands: Operands) -> Result:
        input, weight, bias, scale, _ = operands
        input = shuffle_channels(input, self.request.input_shuffle)
        value = aten_convolution(input, weight, bias if scale is None else None, self.request.geometry)
        output, preactivation = compose(value, operands, self.request)
        if not self.request.save_preactivation:
            return self._dense(output), None
        return self._dense(output), self._dense(output.clone() if output is preactivation else preactivation)

    def _dense(self, value: Tensor) -> Tensor:
        if value.stride() == self.strides:
            return value
        return torch.empty(self.shape, dtype=value.dtype, device=value.device, memory_format=self.layout).copy_(value)


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


class Steps:
    """Launches prepared on one device, in order, over buffers in a fixed order of names.

    Args:
        launches, temporaries: as planned; the temporaries' buffers follow `names`.
        names: the buffers that the caller holds.
        device: index of the CUDA device, -1 for the CPU.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        temporaries: Sequence[Temporary],
        names: Sequence[str],
        executor: Executor,
        device: int,
    ) -> None:
        self.names = (*names, *(temporary.name for temporary in temporaries))
        self.temporaries = tuple((item.shape, getattr(torch, item.dtype)) for item in temporaries)
        self.stream, self.device = executor.stream, device
        with nullcontext() if device < 0 else torch.cuda.device(device):
            self.steps = tuple(executor.prepare(launch, self.names, device) for launch in launches)

    def add_temporaries(self, buffers: list[Any], device: torch.device) -> None:
        """Allocate the temporaries behind the caller's buffers."""
        for shape, kind in self.temporaries:
            buffers.append(torch.empty(shape, dtype=kind, device=device))

    def launch(self, buffers: Sequence[Any]) -> None:
        """Run the launches in order on the current stream of the device, on buffers in the order of `names`."""
        if self.device >= 0 and torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                self._launch(buffers)
        else:
            self._launch(buffers)

    def _launch(self, buffers: Sequence[Any]) -> None:
        stream = self.stream(self.device)
        for step in self.steps:
            step(stream, buffers)


class KernelPlan:
    """A call that our kernels compute: its launches, prepared, and the buffers between them."""

    def __init__(
        self,
        call: Call,
        layout: torch.memory_format,
        gathered: tuple[int, ...],
        executor: Executor,
        device: int,
        record: CallRecord,
    ) -> None:
        problem = call.problem
        self.shape, self.layout, self.saves = problem.output_shape, layout, problem.epilogue.save_preactivation
        self.steps = Steps(call.launches, call.temporaries, BUFFERS, executor, device)
        self.names = self.steps.names
        self.gathered, self.record = gathered, record

    def run(self, operands: Operands) -> Result:
        """Allocate the outputs and temporaries and launch on the current stream of the tensors' device."""
        buffers = self.allocate(operands)
        self.launch(buffers)
        return buffers[OUTPUT], buffers[PREACTIVATION]

    def allocate(self, operands: Operands) -> list[Any]:
        """The buffers of one call, in the order of `names`."""
        dtype, device = operands.input.dtype, operands.input.device
        output = torch.empty(self.shape, dtype=dtype, device=device, memory_format=self.layout)
        preactivation = torch.empty_like(output) if self.saves else None
        buffers: list[Any] = [*operands, output, preactivation]
        for index in self.gathered:
            buffers[index] = buffers[index].contiguous()
        self.steps.add_temporaries(buffers, device)
        return buffers

    def launch(self, buffers: list[Any]) -> None:
        """Run the launches in order on buffers in the plan's order."""
        self.steps.launch(buffers)


def make_kernel_plan(
    problem: ConvProblem,
    config: KernelConfig,
    operands: Operands,
    executor: Executor,
    device: int,
    record: CallRecord,
) -> KernelPlan:
    """Plan the launches for operands as they lie in memory, and prepare each on `device`."""
    call = plan_operands(problem, config, operands)
    layout = torch.channels_last if problem.output_channels_last else torch.contiguous_format
    record = CallRecord(
        problem,
        config.family,
        record.reason,
        tuple(launch.name for launch in call.launches),
        config,
        record.source,
    )
    return KernelPlan(call, layout, gathered_operands(operands), executor, device, record)


def plan_operands(problem: ConvProblem, config: KernelConfig, operands: Operands) -> Call:
    """The launches for operands as they lie in memory."""
    return plan_call(problem, config, placed_operands(operands))


def placed_operands(operands: Any) -> dict[str, Operand]:
    """How the tensors of a call, a named tuple, lie in memory, by name; absent ones are left out."""
    return {
        name: operand_of(tensor) for name, tensor in zip(operands._fields, operands, strict=True) if tensor is not None
    }


def gathered_operands(operands: Any) -> tuple[int, ...]:
    """Positions of a call's vectors that must be made contiguous before the launch."""
    return tuple(index for index, tensor in enumerate(operands) if is_strided_vector(tensor))


def is_strided_vector(tensor: Tensor | None) -> bool:
    """A bias or scale with gaps: it is copied before the launch, so that the kernels read one element after another."""
    return tensor is not None and tensor.dim() == 1 and not tensor.is_contiguous()


def operand_of(tensor: Tensor) -> Operand:
    """How a tensor of a call lies in memory; a vector with gaps as the copy that is made of it."""
    if is_strided_vector(tensor):
        return Operand((1, 1, 1, 1), MAX_ALIGNMENT)
    address = tensor.data_ptr()
    alignment = min(MAX_ALIGNMENT, address & -address) if address else MAX_ALIGNMENT
    strides = tensor.stride() if tensor.dim() == 4 else (1, 1, 1, 1)
    return Operand(strides, alignment)  # type: ignore[arg-type]
