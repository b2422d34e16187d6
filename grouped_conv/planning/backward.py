"""The implementation behind `conv2d_backward`: which gradients run by our kernels, their plan, and its run.

Each gradient is decided on its own, as the forward pass is: by policy, records and what the caller insists on. What our
kernels do not compute, ATen does. A trace shows one record per gradient of input and weight; the sums for bias and
residual are launches of the weight's record, or of the input's where the weight needs no gradient. Where they write the
activation's gradient for the kernels that follow (`written_gradient`), they come first, in the first record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import Saved, vector_jacobian
from grouped_conv.call_values import device_tables
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context import overrides, tracing, workspace
from grouped_conv.context.policies import get_policy
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.gradient_call import capped, gradient_problem, plan_bias_gradient, plan_gradient
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning import decisions, executors, plan_cache, written_gradient
from grouped_conv.planning.decisions import Conditions
from grouped_conv.planning.executors import Executor
from grouped_conv.planning.plan import Steps, native_settings, operand_of
from grouped_conv.planning.plan_cache import placement

NAMES = ("input", "weight", "bias", "scale", "residual")
READ = ("grad_output", "known", "input")
"""Operands that the kernels read with their channels innermost; others are copied so."""
BUFFERS = (*READ, "weight", "scale", *(f"grad_{name}" for name in NAMES))
GRADIENT, WRITTEN = BUFFERS.index("grad_output"), BUFFERS.index("grad_residual")

Wanted = tuple[bool, ...]
Gradients = list[Tensor | None]


class BackwardOperands(NamedTuple):
    """The tensors of one call: the output's gradient and what the forward pass kept."""

    grad_output: Tensor
    saved: Saved


def run(
    operands: BackwardOperands, attributes: tuple[Any, ...], as_request: Callable[..., Request], wanted: Wanted
) -> Gradients:
    """Compute the gradients of input, weight, bias, scale and residual that are wanted; None for the others.

    Args:
        attributes: the operator's arguments that are not tensors, hashable.
        as_request: makes the `Request` of them, when a plan has to be made.
    """
    grad, saved = operands
    key = (
        "backward",
        attributes,
        wanted,
        saved.input_shape,
        saved.input_channels_last,
        placement(grad),
        *(None if tensor is None else placement(tensor) for tensor in saved[:4]),
        workspace.max_workspace_bytes(),
        *plan_cache.surroundings(grad),
    )
    plan = plan_cache.find(key)
    if plan is None:
        plan = plan_cache.find_or_make(key, lambda: _make(operands, as_request(*attributes), wanted))
    return plan.run(operands)


def _make(operands: BackwardOperands, request: Request, wanted: Wanted) -> tuple[BackwardPlan, bool]:
    """The plan, and whether it may be kept."""
    saved = operands.saved
    forward = Operands(saved.some_input("meta"), saved.weight, None, saved.scale)  # its layout is all that counts
    dtype = operands.grad_output.dtype
    described = decisions.describe(forward, decisions.with_settled_precision(request, dtype))
    return make_plan(BackwardPlan, described, operands, request, wanted)


def empty_results(grad: Tensor, saved: Saved, wanted: Sequence[bool]) -> Gradients:
    """Uninitialised gradients: those of input, weight and residual dense, in their operand's memory format."""
    weight = saved.weight
    last = saved.input_channels_last, is_channels_last(weight.shape, weight.stride())
    formats = [torch.channels_last if one else torch.contiguous_format for one in (*last, any(last))]

    def empty(shape: Sequence[int], layout: torch.memory_format) -> Tensor:
        return torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=layout)

    shapes = (saved.input_shape, weight.shape, weight.shape[:1], weight.shape[:1], grad.shape)
    plain = torch.contiguous_format
    kinds = (formats[0], formats[1], plain, plain, formats[2])
    return [empty(shape, layout) if want else None for shape, layout, want in zip(shapes, kinds, wanted, strict=True)]


class BackwardPlan:
    """Runs calls with one key: some gradients by kernels, the others by ATen."""

    def __init__(self, request: Request, by_aten: Wanted, by_kernel: Wanted) -> None:
        self.request, self.by_aten, self.by_kernel = request, by_aten, by_kernel
        self.records: tuple[CallRecord, ...] = ()
        self.copied: tuple[str, ...] = ()
        self.writes = False
        """Does the first part write the gradient that the others read?"""
        self.parts: list[tuple[Steps, tuple[Any, ...]]] = []

    def add(self, call: Call, executor: Executor, device: torch.device) -> None:
        """One more call of kernels, prepared on `device`."""
        tables = tuple(device_tables.keep(np.asarray(array), device) for array in call.tables.values())
        index = -1 if device.index is None else device.index
        steps = Steps(call.launches, call.temporaries, (*BUFFERS, *call.tables), executor, index)
        self.parts.append((steps, tables))

    def runs(self, direction: str) -> bool:
        """Do kernels compute the gradient of this direction? The scale's comes with the weight's."""
        return self.by_kernel[0] if direction == "input_grad" else self.by_kernel[1] or self.by_kernel[3]

    def empty(self, operands: BackwardOperands, wanted: Sequence[bool]) -> Gradients:
        """Uninitialised gradients."""
        return empty_results(operands.grad_output, operands.saved, wanted)

    def by_torch(self, operands: BackwardOperands) -> Gradients:
        """The gradients of `by_aten` in torch's operations, at any strides."""
        return vector_jacobian(operands.saved, self.request, operands.grad_output, None, self.by_aten)

    def run(self, operands: BackwardOperands) -> Gradients:
        """Allocate and compute; operands have the shapes, strides and alignment that the plan was made for."""
        for record in self.records:
            tracing.record(record)
        found: Gradients = [None] * len(NAMES)
        if any(self.by_aten):
            found = self._by_aten(operands)
        if any(self.by_kernel):
            made = self._by_kernels(operands)
            found = [mine if mine is not None else theirs for mine, theirs in zip(made, found, strict=True)]
        return found

    def _by_aten(self, operands: BackwardOperands) -> Gradients:
        with native_settings(operands.grad_output, self.request.precision):
            values = self.by_torch(operands)
        made = self.empty(operands, self.by_aten)
        return [
            value if target is None or value is None or _is_like(value, target, operands) else target.copy_(value)
            for value, target in zip(values, made, strict=True)
        ]

    def _by_kernels(self, operands: BackwardOperands) -> Gradients:
        grad, saved = operands
        made = self.empty(operands, (self.by_kernel[0], self.runs("weight_grad"), *self.by_kernel[2:]))
        named: dict[str, Tensor | None] = {
            "grad_output": grad,
            "known": saved.known,
            "input": saved.input,
            "weight": saved.weight,
            "scale": None if saved.scale is None else saved.scale.contiguous(),
        }
        for name in self.copied:
            tensor = named[name]
            assert tensor is not None
            named[name] = tensor.contiguous(memory_format=torch.channels_last)
        buffers = [*named.values(), *made]
        if self.writes and buffers[WRITTEN] is None:
            buffers[WRITTEN] = torch.empty_like(grad, memory_format=torch.channels_last)
        for steps, tables in self.parts:
            all_buffers: list[Any] = [*buffers, *map(device_tables.fetch, tables)]
            steps.add_temporaries(all_buffers, grad.device)
            steps.launch(all_buffers)
            if self.writes:
                buffers[GRADIENT] = buffers[WRITTEN]
        return [result if want else None for result, want in zip(made, self.by_kernel, strict=True)]


def _is_like(value: Tensor, target: Tensor, operands: BackwardOperands) -> bool:
    """May `value` be returned where `target` was meant? It must not be the operand itself."""
    return value.stride() == target.stride() and value.data_ptr() != operands.grad_output.data_ptr()


def make_plan(
    kind: Callable[[Request, Wanted, Wanted], BackwardPlan],
    described: ConvProblem | str,
    operands: BackwardOperands,
    request: Request,
    wanted: Wanted,
) -> tuple[BackwardPlan, bool]:
    """The plan, and whether it may be kept.

    Args:
        kind: makes the plan of a request, what ATen and what kernels compute.
        described: the forward problem, or why it is none.
    """
    grad = operands.grad_output
    device = grad.get_device()
    barred = decisions.why_nothing_compiles() if device >= 0 else ""
    executor = executors.gpu_executor() if device >= 0 else executors.executor_of_cpu_tensors()
    limit = workspace.max_workspace_bytes()

    def decide(problem: ConvProblem | str, direction: str, max_workspace: int) -> CallRecord:
        conditions = Conditions(get_policy(), request.backend, executor, overrides.given_config(direction), barred)
        return _decide(problem, conditions, device, max_workspace, grad.numel() == 0)

    records: dict[str, CallRecord] = {}
    for direction, needed in (
        ("input_grad", wanted[0]),
        ("weight_grad", wanted[1] or wanted[3] or not wanted[0]),  # also the path of the sums alone
    ):
        if needed:
            problem = described if isinstance(described, str) else gradient_problem(described, direction)
            records[direction] = decide(problem, direction, limit)
    chosen = {direction: record for direction, record in records.items() if record.config is not None}
    by_weight, sums = "weight_grad" in chosen, bool(chosen)
    kernels = ("input_grad" in chosen, by_weight, sums, by_weight, sums)
    by_kernel = tuple(want and mine for want, mine in zip(wanted, kernels, strict=True))
    by_aten = tuple(want and not mine for want, mine in zip(wanted, kernels, strict=True))
    plan = kind(request, by_aten, by_kernel)
    if executor is not None and chosen:
        behind = [*chosen.values()][-1].problem
        assert isinstance(behind, ConvProblem)
        running = {direction: record for direction, record in chosen.items() if plan.runs(direction)}
        if running and (by_kernel[2] or by_kernel[4]):
            residual = plan.empty(operands, (False, False, False, False, by_kernel[4]))[4]
            strides = None if residual is None else residual.stride()
            running, plan.writes = written_gradient.choose(running, decide, strides, limit)
            chosen |= running
            records |= running
        for direction, launches in _add_kernels(plan, behind, operands, chosen, executor).items():
            records[direction] = replace(records[direction], launches=tuple(launches))
    plan.records = tuple(records.values())
    return plan, not barred


def _decide(
    problem: ConvProblem | str, conditions: Conditions, device: int, max_workspace: int, empty: bool
) -> CallRecord:
    """One gradient's path; a kernel's launches are filled in later."""
    known = None if isinstance(problem, str) else problem
    executor = conditions.executor
    if empty:
        return CallRecord(known, "aten", "the output has no elements")
    if executor is None:  # also where the forward pass insisted on kernels, inside a block that has ended since
        return CallRecord(known, "aten", "the tensors are on the CPU, outside grouped_conv.interpret()")
    decision = decisions.decide(problem, conditions, device)
    config = decision.config
    if config is None or known is None:
        return CallRecord(known, "aten", decision.reason, source=decision.source)
    known = decisions.adapted(known, executor)
    config = capped(known, config, max_workspace)
    return CallRecord(known, config.family, decision.reason, (), config, decision.source)


def _add_kernels(
    plan: BackwardPlan,
    behind: ConvProblem,
    operands: BackwardOperands,
    chosen: Mapping[str, CallRecord],
    executor: Executor,
) -> dict[str, list[str]]:
    """Plan the launches for the operands as they lie in memory; their names, by direction.

    Args:
        behind: whose activation the output's gradient is behind.
    """
    grad, saved = operands
    made = plan.empty(operands, (True,) * len(NAMES))
    tensors = {"grad_output": grad, "known": saved.known, "input": saved.input, "weight": saved.weight}
    tensors |= {f"grad_{name}": result for name, result in zip(NAMES, made, strict=True)}
    placed = {name: operand_of(tensor) for name, tensor in tensors.items() if tensor is not None}
    weighs = plan.runs("weight_grad")
    plan.copied = tuple(
        name
        for name in READ
        if name in placed and (name != "input" or weighs) and placed[name].strides[1] != 1 and any(plan.by_kernel)
    )
    for name in plan.copied:
        placed[name] = Operand(channels_last_strides(tuple(tensors[name].shape)))  # type: ignore[union-attr]
    sums: list[tuple[str, Call]] = []
    if plan.by_kernel[2] or plan.by_kernel[4]:
        wanted = {"grad_bias": plan.by_kernel[2], "grad_residual": plan.by_kernel[4] or plan.writes}
        if plan.writes:
            placed["grad_residual"] = Operand(channels_last_strides(tuple(grad.shape)))
        direction = [*chosen][0 if plan.writes else -1]
        sums.append((direction, plan_bias_gradient(behind, placed, **wanted)))
    if plan.writes:
        placed["grad_output"] = placed["grad_residual"]
    calls: list[tuple[str, Call]] = []
    for direction, record in chosen.items():
        if plan.runs(direction):
            assert isinstance(record.problem, ConvProblem) and record.config is not None
            grad_scale = direction == "weight_grad" and plan.by_kernel[3]
            calls.append((direction, plan_gradient(record.problem, record.config, placed, grad_scale=grad_scale)))
    calls = sums + calls if plan.writes else calls + sums
    launches: dict[str, list[str]] = {}
    for direction, call in calls:
        plan.add(call, executor, grad.device)
        launches.setdefault(direction, []).extend(launch.name for launch in call.launches)
    if plan.copied and calls:
        launches[calls[0][0]][:0] = [f"copy {name}" for name in plan.copied]
    return launches
