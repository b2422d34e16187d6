"""Which path a convolution takes and why: the policy, the records of this device, and what the caller insisted on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from grouped_conv.by_torch.gradients import float32_flag
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ITEM_SIZE, ConvProblem
from grouped_conv.planning import executors, records
from grouped_conv.planning.executors import DriverExecutor, Executor, InterpreterExecutor


@dataclass(frozen=True, slots=True)
class Conditions:
    """What, besides the operands, decides the path.

    Attributes:
        policy: `measured`, `predicted` or `kernels`.
        backend: `auto`, `aten` or `kernel`.
        executor: where kernels would run, or None for a CPU tensor with nothing to run it.
        given: the configuration that `using_config` asks for.
        barred: why nothing may be compiled now; empty when it may.
    """

    policy: str
    backend: str
    executor: Executor | None
    given: KernelConfig | None
    barred: str = ""

    @property
    def insists(self) -> str:
        """Who insists on the kernels, in the words of an error message; empty when nobody does."""
        if self.backend == "kernel":
            return "backend='kernel'"
        return "policy 'kernels'" if self.policy == "kernels" and self.backend == "auto" else ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The path of a call: a kernel when `config` is there, otherwise ATen."""

    config: KernelConfig | None
    reason: str
    source: str = ""


def describe(operands: Operands, request: Request) -> ConvProblem | str:
    """The call as a `ConvProblem`, or why it is none."""
    input, weight, bias, scale, residual = operands
    dtype = str(input.dtype).removeprefix("torch.")
    if dtype not in ITEM_SIZE:
        return f"the kernels do not compute {dtype}"
    geometry = request.geometry
    epilogue = Epilogue(
        request.activation,
        request.negative_slope,
        bias is not None,
        scale is not None,
        residual is not None,
        request.save_preactivation,
        request.output_shuffle,
    )
    try:
        return ConvProblem(
            batch=input.shape[0],
            layout=GroupLayout.uniform(input.shape[1], weight.shape[0], operands.groups),
            in_size=(input.shape[2], input.shape[3]),
            kernel_size=(weight.shape[2], weight.shape[3]),
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            dtype=dtype,
            precision=request.precision,
            input_channels_last=is_channels_last(input.shape, input.stride()),
            weight_channels_last=is_channels_last(weight.shape, weight.stride()),
            epilogue=epilogue,
            input_shuffle=request.input_shuffle,
        )
    except ValueError as error:
        return str(error)


def decide(problem: ConvProblem | str, conditions: Conditions, device: int) -> Decision:
    """The path for `problem` on CUDA device `device` (-1 for the CPU).

    Raises:
        RuntimeError: when kernels are insisted on and cannot run here, with what to do about it.
        ValueError: when the given configuration cannot run the problem, with the reason.
    """
    if conditions.backend == "aten":
        return Decision(None, "backend='aten' was asked for")
    if isinstance(problem, str):
        if conditions.backend == "kernel":
            raise RuntimeError(f"backend='kernel' was asked for, but {problem}")
        return Decision(None, problem)
    executor = conditions.executor
    if executor is None:
        if conditions.insists:
            raise RuntimeError(
                f"{conditions.insists} cannot run a kernel on a CPU tensor; use `with grouped_conv.interpret():` "
                "to run it in Triton's interpreter, or move the tensors to a GPU"
            )
        return Decision(None, "the tensors are on the CPU, outside grouped_conv.interpret()")
    if conditions.barred:
        if conditions.insists:
            raise RuntimeError(f"{conditions.insists} cannot compile a kernel now: {conditions.barred}")
        return Decision(None, conditions.barred)
    if conditions.given is not None:
        reason = why_invalid(problem, conditions.given)
        if reason is not None:
            raise ValueError(f"configuration {conditions.given} cannot run {problem}: {reason}")
        return Decision(conditions.given, "a configuration was given", "given")
    if device < 0:
        return Decision(executor.choose(problem), f"run by {executor.name}", "heuristic")
    policy = "kernels" if conditions.insists else conditions.policy
    return Decision(*records.consult(problem, policy, device))


def adapted(problem: ConvProblem, executor: Executor) -> ConvProblem:
    """The problem as its executor can compute it."""
    native = isinstance(executor, DriverExecutor) and executor.is_native
    return replace(problem, precision="ieee") if native else problem


def with_settled_precision(request: Request, dtype: torch.dtype) -> Request:
    """The request with `default` replaced by what torch's flag says now; torch's other settings all mean ieee."""
    if request.precision != "default":
        return request
    tf32 = dtype == torch.float32 and float32_flag() == "tf32"
    return replace(request, precision="tf32" if tf32 else "ieee")


def why_nothing_compiles() -> str:
    """Why a kernel for CUDA tensors cannot be compiled at this moment; empty when it can."""
    if torch.cuda.is_current_stream_capturing():
        return (
            "a CUDA graph is being captured and this call has no plan yet; run it once before the capture, "
            "a whole model by `grouped_conv.warmup(model, example_input)`"
        )
    if isinstance(executors.executor_of_cpu_tensors(), InterpreterExecutor):
        return "inside grouped_conv.interpret() Triton cannot compile; run the call once outside it"
    return ""
