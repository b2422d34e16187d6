"""The torch operator `grouped_conv::lrn_max_pool2d`: schema, fake and real implementation, autograd, plans.

The gradient runs the forward pass again in torch's own operations and differentiates those. The operator stands below
autocast and keeps its input's dtype, as `max_pool2d` does. Its output has the memory format of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.by_torch.lrn_pool import LrnPoolRequest, checked, lrn_pool_by_torch
from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.context import overrides, tracing
from grouped_conv.context.policies import get_policy
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig, why_invalid
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.problem import ITEM_SIZE
from grouped_conv.ops.conv2d import library
from grouped_conv.planning import decisions, executors, plan_cache
from grouped_conv.planning.decisions import Conditions, Decision
from grouped_conv.planning.executors import Executor
from grouped_conv.planning.plan import Steps, operand_of

library.define(
    "lrn_max_pool2d(Tensor input, str order, int size, float alpha, float beta, float k, int groups, "
    "int[2] kernel_size, int[2] stride, int[2] padding, bool ceil_mode, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
lrn_max_pool2d = torch.ops.grouped_conv.lrn_max_pool2d.default


def call(input: Tensor, request: LrnPoolRequest) -> Tensor:
    """The operator on `(N, C, H, W)`."""
    return lrn_max_pool2d(
        input,
        request.order,
        request.size,
        request.alpha,
        request.beta,
        request.k,
        request.groups,
        request.kernel_size,
        request.stride,
        request.padding,
        request.ceil_mode,
        request.backend,
    )


def _request(
    order: str,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    backend: str,
) -> LrnPoolRequest:
    kernel, step, pad = ((int(values[0]), int(values[1])) for values in (kernel_size, stride, padding))
    return LrnPoolRequest(order, size, alpha, beta, k, groups, kernel, step, pad, ceil_mode, backend)


class _Plan(Protocol):
    record: CallRecord

    def run(self, input: Tensor) -> Tensor:
        """Compute the call for an input that lies as the plan's did."""


class _TorchPlan:
    """A call that torch's own operations compute, autocast off because dtypes are final here."""

    def __init__(self, request: LrnPoolRequest, record: CallRecord) -> None:
        self.request, self.record = request, record

    def run(self, input: Tensor) -> Tensor:
        """Step by step, in the memory format that the fake implementation promises."""
        with torch.autocast(input.device.type, enabled=False):
            output = lrn_pool_by_torch(input, self.request)
        promised = _empty_output(input, output.shape)
        return output if output.stride() == promised.stride() and output is not input else promised.copy_(output)


class _KernelPlan:
    """A call that one launch of our kernel computes."""

    def __init__(
        self, problem: LrnPoolProblem, launch: Launch, executor: Executor, device: int, record: CallRecord
    ) -> None:
        self.shape, self.record = problem.output_shape, record
        self.steps = Steps((launch,), (), ("input", "output"), executor, device)

    def run(self, input: Tensor) -> Tensor:
        """Allocate the output and launch on the current stream of the input's device."""
        output = _empty_output(input, self.shape)
        self.steps.launch((input, output))
        return output


def _empty_output(input: Tensor, shape: Sequence[int], device: Any = None) -> Tensor:
    channels_last = layouts.is_channels_last(input.shape, input.stride())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=input.dtype, device=device or input.device, memory_format=layout)


def run(input: Tensor, *attributes: Any) -> Tensor:
    """The real implementation: find the plan of the call, or make it once, and run it."""
    frozen: Any = tuple(tuple(value) if isinstance(value, list) else value for value in attributes)
    key = ("lrn_max_pool2d", frozen, plan_cache.placement(input), *plan_cache.surroundings(input))
    plan: _Plan | None = plan_cache.find(key)
    if plan is None:

        def make() -> tuple[_Plan, bool]:
            barred = decisions.why_nothing_compiles() if input.is_cuda else ""
            return _make(input, _request(*frozen), barred), not barred

        plan = plan_cache.find_or_make(key, make)
    tracing.record(plan.record)
    return plan.run(input)


def _make(input: Tensor, request: LrnPoolRequest, barred: str) -> _Plan:
    problem = describe(input, request)
    known = None if isinstance(problem, str) else problem
    if known is None or known.batch == 0:
        reason = problem if isinstance(problem, str) else "the output has no elements"
        if request.backend == "kernel" and known is None:
            raise RuntimeError(f"backend='kernel' was asked for, but {reason}")
        return _TorchPlan(request, CallRecord(known, "aten" if known is None else "empty", reason))
    device = input.get_device()
    executor = executors.gpu_executor() if device >= 0 else executors.executor_of_cpu_tensors()
    conditions = Conditions(get_policy(), request.backend, executor, overrides.given_config("forward"), barred)
    decision = decide(known, conditions, device)
    if decision.config is None or executor is None:
        return _TorchPlan(request, CallRecord(known, "aten", decision.reason))
    launch = _plan_launch(known, decision.config, input)
    record = CallRecord(known, LrnPoolConfig.family, decision.reason, (launch.name,), decision.config, decision.source)
    return _KernelPlan(known, launch, executor, device, record)


def _plan_launch(problem: LrnPoolProblem, config: Any, input: Tensor) -> Launch:
    from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool

    output = _empty_output(input, problem.output_shape, device="meta")
    return plan_lrn_pool(problem, config, {"input": operand_of(input), "output": operand_of(output)})


def describe(input: Tensor, request: LrnPoolRequest) -> LrnPoolProblem | str:
    """The call as an `LrnPoolProblem`, or why it is none that the kernels know."""
    dtype = str(input.dtype).removeprefix("torch.")
    if dtype not in ITEM_SIZE:
        return f"the kernels do not compute {dtype}"
    channels = input.shape[1]
    try:
        return LrnPoolProblem(
            batch=input.shape[0],
            channels=channels,
            in_size=(input.shape[2], input.shape[3]),
            order=request.order,
            size=request.size,
            alpha=request.alpha,
            beta=request.beta,
            k=request.k,
            groups=request.groups,
            kernel_size=request.kernel_size,
            stride=request.stride,
            padding=request.padding,
            ceil_mode=request.ceil_mode,
            dtype=dtype,
            channels_last=channels == 1 or layouts.is_channels_last(input.shape, input.stride()),
        )
    except ValueError as error:
        return str(error)


def decide(problem: LrnPoolProblem, conditions: Conditions, device: int) -> Decision:
    """The path for `problem` on CUDA device `device` (-1 for the CPU): our kernel, or torch's operations.

    An NCHW input goes to torch: a pass that packs it would read and write as many bytes as the kernel itself.

    Raises:
        RuntimeError: when the kernel is insisted on and cannot run here.
        ValueError: when the given configuration cannot run the problem.
    """
    if conditions.backend == "aten":
        return Decision(None, "backend='aten' was asked for")
    executor = conditions.executor
    if executor is None or conditions.barred:
        obstacle = conditions.barred or "the tensors are on the CPU, outside grouped_conv.interpret()"
        if conditions.insists:
            raise RuntimeError(f"{conditions.insists} cannot run the LRN + pool kernel: {obstacle}")
        return Decision(None, obstacle)
    if isinstance(conditions.given, LrnPoolConfig):
        reason = why_invalid(problem, conditions.given)
        if reason is not None:
            raise ValueError(f"configuration {conditions.given} cannot run {problem}: {reason}")
        return Decision(conditions.given, "a configuration was given", "given")
    if device >= 0 and not conditions.insists:
        return Decision(None, f"policy {conditions.policy!r} has no measured record of LRN + pool: it is not tuned yet")
    config = executor.choose(problem)
    reason = why_invalid(problem, cast(LrnPoolConfig, config))
    if reason is not None:
        if conditions.backend == "kernel":
            raise RuntimeError(f"backend='kernel' was asked for, but {reason}")
        return Decision(None, reason)
    return Decision(config, f"run by {executor.name}", "heuristic")


def _fake(input: Tensor, *attributes: Any) -> Tensor:
    request = checked(_request(*attributes))
    torch._check(
        input.dim() == 4 and request.groups > 0 and input.shape[1] % request.groups == 0,
        lambda: f"expected an input (N, C, H, W) with C divisible by groups={request.groups}, got {list(input.shape)}",
    )
    if "pool" not in request.order:
        return _empty_output(input, input.shape)
    with torch.no_grad():
        pooled = F.max_pool2d(input, request.kernel_size, request.stride, request.padding, ceil_mode=request.ceil_mode)
    return _empty_output(input, pooled.shape)


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.request = _request(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> Any:
    (input,) = ctx.saved_tensors
    with torch.enable_grad(), torch.autocast(input.device.type, enabled=False):
        output = lrn_pool_by_torch(input, ctx.request)
    (gradient,) = torch.autograd.grad(output, input, grad, create_graph=torch.is_grad_enabled())
    return gradient, *[None] * 11


for _key in ("CPU", "CUDA"):
    library.impl("lrn_max_pool2d", run, _key)
torch.library.register_fake("grouped_conv::lrn_max_pool2d", _fake, lib=library)
torch.library.register_autograd("grouped_conv::lrn_max_pool2d", _backward, setup_context=_setup_context, lib=library)
