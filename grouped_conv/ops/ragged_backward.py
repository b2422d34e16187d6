"""The operator `grouped_conv::ragged_conv2d_backward`: the gradients of unequal groups, by kernels or ATen.

Weights and their gradients travel as one flat storage (`ragged_weights`), which the kernels read and write. The plan,
its run and its records are those of `backward.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from grouped_conv.by_torch.gradients import Saved
from grouped_conv.by_torch.ragged import ragged_vector_jacobian
from grouped_conv.call_values import ragged_weights
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.request import Request
from grouped_conv.context import workspace
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.ops.conv2d import library
from grouped_conv.planning import backward, decisions, executors, plan_cache
from grouped_conv.planning import ragged as ragged_call
from grouped_conv.planning.backward import BackwardOperands, BackwardPlan, Gradients, Wanted
from grouped_conv.planning.plan_cache import placement

library.define(
    "ragged_conv2d_backward(Tensor grad_output, Tensor? input, Tensor weight, Tensor? scale, Tensor? known,"
    " SymInt[4] input_size, bool input_channels_last, str layout, SymInt[2] kernel_size, SymInt[2] stride,"
    " SymInt[4] padding, SymInt[2] dilation, str activation,"
    " float negative_slope, str precision, str backend, bool[5] wanted) -> (Tensor grad_input, Tensor grad_weight,"
    " Tensor grad_bias, Tensor grad_scale, Tensor grad_residual)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
ragged_conv2d_backward = torch.ops.grouped_conv.ragged_conv2d_backward.default


def may_run(grad: Tensor) -> bool:
    """Could kernels compute gradients of this tensor? On plain CPU tensors torch's operations need no operator."""
    return grad.is_cuda or executors.executor_of_cpu_tensors() is not None


def call(
    grad: Tensor, saved: Saved, weights: Sequence[Tensor], layout_text: str, request: Request, wanted: Sequence[bool]
) -> tuple[Gradients, list[Tensor]]:
    """Gradients of input, bias, scale and residual (the second is missing), and of each weight if it is wanted.

    Args:
        saved: its weight is unused.
        weights: one per size of groups.
        wanted: for input, weights, bias, scale and residual.
    """
    layout, window = read_layout(layout_text), request.geometry
    kernel_size = (weights[0].shape[2], weights[0].shape[3])
    passes = request.activation == "none"  # the residual's gradient is the output's
    asked = [*wanted[:4], wanted[4] and not passes]
    found: Gradients = [None] * 5
    if any(asked):
        with torch._C._AutoDispatchBelowAutograd():
            results = ragged_conv2d_backward(
                grad,
                saved.input,
                ragged_weights.flat_of(weights, layout),
                saved.scale,
                saved.known,
                saved.input_shape,
                saved.input_channels_last,
                layout_text,
                kernel_size,
                window.stride,
                window.padding,
                window.dilation,
                request.activation,
                request.negative_slope,
                request.precision,
                request.backend,
                asked,
            )
        found = [result if want else None for result, want in zip(results, asked, strict=True)]
    if wanted[4] and passes:
        found[4] = grad
    flat = found[1]
    return found, [] if flat is None else ragged_weights.views(flat, layout, kernel_size)


class RaggedBackwardPlan(BackwardPlan):
    """Runs calls with one key and layout."""

    def __init__(
        self,
        layout: GroupLayout,
        kernel_size: tuple[int, int],
        request: Request,
        by_aten: Wanted,
        by_kernel: Wanted,
    ) -> None:
        super().__init__(request, by_aten, by_kernel)
        self.group_layout, self.kernel_size = layout, kernel_size

    def empty(self, operands: BackwardOperands, wanted: Sequence[bool]) -> Gradients:
        """Uninitialised gradients, the weight's as one flat storage."""
        return _empty(operands.grad_output, operands.saved, self.group_layout, wanted)

    def by_torch(self, operands: BackwardOperands) -> Gradients:
        """The gradients of `by_aten`, one convolution per size of groups."""
        grad, saved = operands
        weights = ragged_weights.views(saved.weight, self.group_layout, self.kernel_size)
        needs, needs_weights = self.by_aten, [self.by_aten[1]] * len(weights)
        found, by_size = ragged_vector_jacobian(
            saved, weights, self.group_layout, self.request, grad, (needs[0], *needs[2:]), needs_weights
        )
        kept = [one for one in by_size if one is not None]
        return [found[0], ragged_weights.flat_of(kept, self.group_layout) if kept else None, *found[1:]]


def _empty(grad: Tensor, saved: Saved, layout: GroupLayout, wanted: Sequence[bool]) -> Gradients:
    rows = grad.new_empty((grad.shape[1], 1, 1, 1), device="meta")  # stands for the weight, whose result is flat
    made = backward.empty_results(grad, saved._replace(weight=rows), wanted)
    if wanted[1]:
        made[1] = torch.empty_like(saved.weight)
    return made


def _implementation(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    known: Tensor | None,
    input_size: Sequence[int],
    input_channels_last: bool,
    layout_text: str,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    negative_slope: float,
    precision: str,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    saved = Saved(input, weight, scale, known, tuple(input_size), input_channels_last)
    operands = BackwardOperands(grad_output, saved)
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation))  # type: ignore[arg-type]
    request = Request(geometry, activation, negative_slope, precision=precision, backend=backend)
    key = (
        "ragged_backward",
        layout_text,
        tuple(kernel_size),
        request,
        tuple(wanted),
        saved.input_shape,
        input_channels_last,
        *(None if tensor is None else placement(tensor) for tensor in (grad_output, input, weight, scale, known)),
        workspace.max_workspace_bytes(),
        *plan_cache.surroundings(grad_output),
    )
    plan = plan_cache.find(key)
    if plan is None:
        size = (kernel_size[0], kernel_size[1])
        make = partial(_make, operands, read_layout(layout_text), size, request, tuple(wanted))
        plan = plan_cache.find_or_make(key, make)
    return _filled(grad_output, plan.run(operands))


def _make(
    operands: BackwardOperands, layout: GroupLayout, kernel_size: tuple[int, int], request: Request, wanted: Wanted
) -> tuple[BackwardPlan, bool]:
    grad, saved = operands
    weights = tuple(ragged_weights.views(saved.weight, layout, kernel_size))
    forward = RaggedOperands(saved.some_input("meta"), weights, None, saved.scale, None)
    described = ragged_call.describe(forward, layout, decisions.with_settled_precision(request, grad.dtype))
    return backward.make_plan(partial(RaggedBackwardPlan, layout, kernel_size), described, operands, request, wanted)


def _fake(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    known: Tensor | None,
    input_size: Sequence[int],
    input_channels_last: bool,
    *rest: Any,
) -> tuple[Tensor, ...]:
    saved = Saved(input, weight, scale, known, tuple(input_size), input_channels_last)
    return _filled(grad_output, _empty(grad_output, saved, read_layout(rest[0]), rest[-1]))


def _filled(grad: Tensor, results: Gradients) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if result is None else result for result in results)


for _key in ("CPU", "CUDA"):
    library.impl("ragged_conv2d_backward", _implementation, _key)
torch.library.register_fake("grouped_conv::ragged_conv2d_backward", _fake, lib=library)


@register_flop_formula(torch.ops.grouped_conv.ragged_conv2d_backward)
def _flops(
    grad_output: Sequence[int], input: Any, weight: Sequence[int], *rest: Any, out_shape: Any = None, **named: Any
) -> int:
    """Two per multiply-accumulate and gradient that is wanted; gaps of the flat storage count as weights."""
    batch, _, out_h, out_w = grad_output
    wanted: Sequence[bool] = rest[-1]
    return 2 * batch * out_h * out_w * weight[0] * (wanted[0] + wanted[1])
