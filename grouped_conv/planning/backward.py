"""Plans of the gradients of a convolution, for equal and unequal groups: which run by our kernels, and in what order.

Each gradient is decided on its own, as the forward pass is: by policy, records and what the caller insists on. ATen
computes what our kernels do not. A trace shows one record for each gradient of input and weight. The sums for bias and
residual are launches of the weight's record, or of the input's where the weight needs no gradient. If they also write
the activation's gradient for the kernels that follow (`written_gradient`), they come first, in the first record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import Saved, vector_jacobian
from grouped_conv.by_torch.ragged import ragged_vector_jacobian
from grouped_conv.call_values import ragged_weights
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.request import BackwardOperands, BackwardRequest, Gradients, Operands, Wanted
from grouped_conv.context import workspace
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.gradient_call import capped, gradient_problem, plan_bias_gradient, plan_gradient
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning import written_gradient
from grouped_conv.planning.decisions import (
    CONVOLUTION,
    NO_ELEMENTS,
    ON_CPU,
    Conditions,
    adapted,
    decide,
    describe,
    with_settled_precision,
)
from grouped_conv.planning.executors import Place
from grouped_conv.planning.plan import native_settings
from grouped_conv.planning.plan_cache import Planner
from grouped_conv.planning.steps import Steps, operand_of

READ = ("grad_output", "known", "input")
"""Operands that the kernels read with their channels innermost; others are copied so."""
BUFFERS = (*BackwardOperands._fields, *(f"grad_{name}" for name in Gradients._fields))
GRADIENT, SCALE, WRITTEN = (BUFFERS.index(name) for name in ("grad_output", "scale", "grad_residual"))
ALL = Wanted(True, True, True, True, True)


class _Kernels(NamedTuple):
    """What our kernels compute of one call.

    Attributes:
        wanted: the gradients that are theirs.
        copied: positions of operands that are copied with their channels innermost.
        writes: does the first part write the gradient that the others read?
        parts: launches, run in this order.
    """

    wanted: Wanted
    copied: tuple[int, ...]
    writes: bool
    parts: tuple[Steps, ...]

    @property
    def made(self) -> Wanted:
        """The gradients that they write; the scale's comes out of the weight's."""
        return self.wanted._replace(weight=self.wanted.weight or self.wanted.scale)


class BackwardPlan:
    """Runs calls with one key: some gradients by kernels, the others by ATen."""

    def __init__(
        self, asked: BackwardRequest, by_aten: Wanted, kernels: _Kernels | None, records: Sequence[CallRecord]
    ) -> None:
        self.asked, self.kernels, self.records = asked, kernels, tuple(records)
        self.by_aten = by_aten if any(by_aten) else None

    def run(self, operands: BackwardOperands) -> Gradients:
        """Allocate and compute; operands have the shapes, strides and alignment that the plan was made for."""
        if self.by_aten is None:
            return Gradients() if self.kernels is None else self._by_kernels(operands, self.kernels)
        found = self._by_aten(operands, self.by_aten)
        if self.kernels is None:
            return found
        made = self._by_kernels(operands, self.kernels)
        return Gradients(*(theirs if mine is None else mine for mine, theirs in zip(made, found, strict=True)))

    def _by_aten(self, operands: BackwardOperands, wanted: Wanted) -> Gradients:
        grad, request = operands.grad_output, self.asked.request
        with native_settings(grad, request.precision):
            values = _in_torch_operations(operands, self.asked, wanted)
        made = empty_results(operands, self.asked, wanted)
        return Gradients(
            *(
                value if target is None or value is None or _is_like(value, target, grad) else target.copy_(value)
                for value, target in zip(values, made, strict=True)
            )
        )

    def _by_kernels(self, operands: BackwardOperands, kernels: _Kernels) -> Gradients:
        grad = operands.grad_output
        made = empty_results(operands, self.asked, kernels.made)
        buffers: list[Any] = [*operands, *made]
        if buffers[SCALE] is not None:
            buffers[SCALE] = buffers[SCALE].contiguous()
        for index in kernels.copied:
            buffers[index] = buffers[index].contiguous(memory_format=torch.channels_last)
        if kernels.writes and buffers[WRITTEN] is None:
            buffers[WRITTEN] = torch.empty_like(grad, memory_format=torch.channels_last)
        for steps in kernels.parts:
            completed = buffers.copy()
            steps.complete(completed, grad.device)
            steps.launch(completed)
            if kernels.writes:
                buffers[GRADIENT] = buffers[WRITTEN]
        return made if kernels.wanted.weight else made._replace(weight=None)


def _in_torch_operations(operands: BackwardOperands, asked: BackwardRequest, wanted: Wanted) -> Gradients:
    """The wanted gradients in torch's operations, at any strides."""
    grad, input, weight, scale, known = operands
    saved = Saved(input, weight, scale, known, asked.input_shape, asked.input_channels_last)
    if asked.unequal is None:
        return vector_jacobian(saved, asked.request, grad, None, wanted)
    layout = read_layout(asked.unequal.layout)
    weights = ragged_weights.views(saved.weight, layout, asked.unequal.kernel_size)
    needs = [wanted.weight] * len(weights)
    found, by_size = ragged_vector_jacobian(saved, weights, layout, asked.request, grad, wanted, needs)
    kept = [one for one in by_size if one is not None]
    return found._replace(weight=ragged_weights.flat_of(kept, layout)) if kept else found


def _is_like(value: Tensor, target: Tensor, grad: Tensor) -> bool:
    """May `value` be returned where `target` was meant? It must not be the operand itself."""
    return value.stride() == target.stride() and value.data_ptr() != grad.data_ptr()


def empty_results(operands: BackwardOperands, asked: BackwardRequest, wanted: Wanted) -> Gradients:
    """Uninitialised gradients: those of input, weight and residual dense, in their operand's memory format.

    The weight's gradient of unequal groups is one flat storage, as the weight is.
    """
    grad, weight, is_flat = operands.grad_output, operands.weight, asked.unequal is not None
    input_last, weight_last = asked.input_channels_last, not is_flat and is_channels_last(weight.shape, weight.stride())

    def empty(shape: Sequence[int], last: bool) -> Tensor:
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=layout)

    grad_weight = None
    if wanted.weight:
        grad_weight = torch.empty_like(weight) if is_flat else empty(weight.shape, weight_last)
    return Gradients(
        empty(asked.input_shape, input_last) if wanted.input else None,
        grad_weight,
        empty(grad.shape[1:2], False) if wanted.bias else None,
        empty(grad.shape[1:2], False) if wanted.scale else None,
        empty(grad.shape, input_last or weight_last) if wanted.residual else None,
    )


def _make(operands: BackwardOperands, asked: BackwardRequest, place: Place) -> BackwardPlan:
    wanted, grad = asked.wanted, operands.grad_output
    described = _describe(operands, asked)
    decide_one = partial(_record_of, asked.request.backend, place, grad.numel() == 0)
    limit = workspace.max_workspace_bytes()
    records: dict[str, CallRecord] = {}
    for direction, needed in (
        ("input_grad", wanted.input),
        ("weight_grad", wanted.weight or wanted.scale or not wanted.input),  # also the path of the sums alone
    ):
        if needed:
            problem = described if isinstance(described, str) else gradient_problem(described, direction)
            records[direction] = decide_one(problem, direction, limit)
    chosen = {direction: record for direction, record in records.items() if record.config is not None}
    by_weight, sums = "weight_grad" in chosen, bool(chosen)
    ours = Wanted("input_grad" in chosen, by_weight, sums, by_weight, sums)
    by_kernel = Wanted(*(want and mine for want, mine in zip(wanted, ours, strict=True)))
    by_aten = Wanted(*(want and not mine for want, mine in zip(wanted, ours, strict=True)))
    if not any(by_kernel) or place.executor is None:
        return BackwardPlan(asked, by_aten, None, [*records.values()])
    forward_problem = [*chosen.values()][-1].problem
    assert isinstance(forward_problem, ConvProblem)
    running = {direction: record for direction, record in chosen.items() if _runs(by_kernel, direction)}
    writes = False
    if running and (by_kernel.bias or by_kernel.residual):
        residual = empty_results(operands, asked, Wanted(False, False, False, False, by_kernel.residual)).residual
        strides = None if residual is None else residual.stride()
        running, writes = written_gradient.choose(running, decide_one, strides, limit)
        chosen |= running
        records |= running
    calls = _Calls(operands, asked, by_kernel, writes)
    planned = calls.plan(chosen, forward_problem)
    for direction, names in calls.launches(planned).items():
        records[direction] = replace(records[direction], launches=names)
    parts = tuple(
        Steps(call.launches, BUFFERS, place.executor, grad.device, call.temporaries, call.tables) for _, call in planned
    )
    copied = tuple(map(BUFFERS.index, calls.copied))
    return BackwardPlan(asked, by_aten, _Kernels(by_kernel, copied, writes, parts), [*records.values()])


def _runs(by_kernel: Wanted, direction: str) -> bool:
    """Do kernels compute the gradient of this direction? The scale's comes with the weight's."""
    return by_kernel.input if direction == "input_grad" else by_kernel.weight or by_kernel.scale


def _describe(operands: BackwardOperands, asked: BackwardRequest) -> ConvProblem | str:
    """The forward problem, or why it is none."""
    weight, scale = operands.weight, operands.scale
    saved = Saved(operands.input, weight, scale, None, asked.input_shape, asked.input_channels_last)
    input = saved.some_input("meta")  # its layout is all that counts
    request = with_settled_precision(asked.request, operands.grad_output.dtype)
    if asked.unequal is None:
        return describe(Operands(input, weight, None, scale), request)
    layout = read_layout(asked.unequal.layout)
    weights = tuple(ragged_weights.views(weight, layout, asked.unequal.kernel_size))
    return describe(RaggedOperands(input, weights, None, scale), request, layout)


def _record_of(
    backend: str, place: Place, empty: bool, problem: ConvProblem | str, direction: str, max_workspace: int
) -> CallRecord:
    """One gradient's path; a kernel's launches are filled in later."""
    known = None if isinstance(problem, str) else problem
    if empty:
        return CallRecord(known, "aten", NO_ELEMENTS)
    if place.executor is None:  # also if the forward pass insisted on kernels, inside a block that has ended since
        return CallRecord(known, "aten", ON_CPU)
    decision = decide(problem, Conditions.of(place, backend, direction), CONVOLUTION)
    config = decision.config
    if config is None or known is None:
        return CallRecord(known, "aten", decision.reason, source=decision.source)
    known = adapted(known, place.executor)
    config = capped(known, config, max_workspace)
    return CallRecord(known, config.family, decision.reason, (), config, decision.source)


class _Calls:
    """Plans the kernels' calls for the strides and alignment of the operands."""

    def __init__(self, operands: BackwardOperands, asked: BackwardRequest, by_kernel: Wanted, writes: bool) -> None:
        self.by_kernel, self.writes = by_kernel, writes
        made = empty_results(operands, asked, ALL)
        tensors = operands._asdict() | {f"grad_{name}": result for name, result in made._asdict().items()}
        del tensors["scale"]  # copied where it has gaps
        self.placed = {name: operand_of(tensor) for name, tensor in tensors.items() if tensor is not None}
        self.copied = tuple(
            name
            for name in READ
            if name in self.placed
            and (name != "input" or _runs(by_kernel, "weight_grad"))
            and self.placed[name].strides[1] != 1
        )
        for name in self.copied:
            self.placed[name] = Operand(channels_last_strides(tuple(tensors[name].shape)))
        if writes:
            self.placed["grad_residual"] = Operand(channels_last_strides(tuple(operands.grad_output.shape)))

    def plan(self, chosen: Mapping[str, CallRecord], forward_problem: ConvProblem) -> list[tuple[str, Call]]:
        """The calls in the order they run, each with the direction whose record shows it.

        Args:
            forward_problem: its activation comes after the convolution, before `grad_output`.
        """
        sums: list[tuple[str, Call]] = []
        if self.by_kernel.bias or self.by_kernel.residual:
            wanted = {
                "grad_bias": self.by_kernel.bias,
                "grad_residual": self.by_kernel.residual or self.writes,
            }
            direction = [*chosen][0 if self.writes else -1]
            sums.append((direction, plan_bias_gradient(forward_problem, self.placed, **wanted)))
        placed = dict(self.placed)
        if self.writes:
            placed["grad_output"] = placed["grad_residual"]
        gradients: list[tuple[str, Call]] = []
        for direction, record in chosen.items():
            if _runs(self.by_kernel, direction):
                assert isinstance(record.problem, ConvProblem) and record.config is not None
                grad_scale = direction == "weight_grad" and self.by_kernel.scale
                call = plan_gradient(record.problem, record.config, placed, grad_scale=grad_scale)
                gradients.append((direction, call))
        return sums + gradients if self.writes else gradients + sums

    def launches(self, planned: Sequence[tuple[str, Call]]) -> dict[str, tuple[str, ...]]:
        """Names of the launches, and of the copies before them, by direction."""
        names: dict[str, tuple[str, ...]] = {}
        copies = tuple(f"copy {name}" for name in self.copied)
        for direction, call in planned:
            before = names.get(direction, ()) if names else copies
            names[direction] = (*before, *(launch.name for launch in call.launches))
        return names


def _workspace(operands: BackwardOperands, asked: BackwardRequest) -> int:
    return workspace.max_workspace_bytes()


GRADIENTS = Planner("conv2d_backward", _make, also=_workspace)
