"""Derivatives of a convolution with unequal groups.

Gradients run by our kernels under the forward pass's policies, second derivatives by torch's operations, one
convolution per size of groups. Under torch.func and forward-mode AD the whole call runs in torch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from grouped_conv.autograd import rules
from grouped_conv.autograd.differentiation import for_backward
from grouped_conv.by_torch.gradients import Saved, compose, known_of, torch_convolution
from grouped_conv.by_torch.ragged import ragged_convolution, ragged_vector_jacobian
from grouped_conv.call_values import ragged_weights
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.ragged_checks import RaggedOperands, check_operands
from grouped_conv.call_values.request import (
    BackwardOperands,
    BackwardRequest,
    Operands,
    RaggedRequest,
    Request,
    UnequalGroups,
    Wanted,
)
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.ops import ragged as ops
from grouped_conv.ops.conv2d import gradients
from grouped_conv.ops.operator import wants_gradient
from grouped_conv.planning import executors
from grouped_conv.planning.plan_cache import Results


def convolve(operands: RaggedOperands, asked: RaggedRequest) -> Tensor:
    """Run the call with derivatives of every kind that the surroundings ask for."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return in_torch_operations(operands, read_layout(asked.layout), asked.request)
    needs_gradient = wants_gradient(operands)
    if needs_gradient:
        asked = RaggedRequest(asked.layout, for_backward(asked.request))
    return rules.run(ops.FORWARD, RULE, operands, asked, needs_gradient)


def in_torch_operations(operands: RaggedOperands, layout: GroupLayout, request: Request) -> Tensor:
    """The whole call in torch's operations."""
    check_operands(operands, layout, request)
    input, weights, bias, scale, _ = operands
    early_bias = bias if scale is None else None
    value = ragged_convolution(input, weights, early_bias, layout, request.geometry, _by_functional)
    return compose(value, operands, request)[0]


def _by_functional(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Groups of one size by `torch.nn.functional.conv2d`, which also takes what `aten.convolution` does not."""
    return torch_convolution(Operands(input, weight, bias), geometry)


def _save(ctx: Any, operands: RaggedOperands, asked: RaggedRequest, results: Results, needs: Sequence[Any]) -> None:
    """Keep what the gradients need: the input where the weights or the scale need one."""
    output, preactivation = results
    assert output is not None
    ctx.asked = asked
    ctx.bias = operands.bias  # keeps autocast's cast of it alive for the next use, as saving keeps the weights'
    input = operands.input
    ctx.input_shape, ctx.input_channels_last = tuple(input.shape), is_channels_last(input.shape, input.stride())
    known = known_of(asked.request, output, preactivation)
    keeps_input = any(needs[1]) or needs[3]
    ctx.save_for_backward(input if keeps_input else None, operands.scale, known, *operands.weights)


def _gradients(ctx: Any, grads: Sequence[Tensor | None], needs: Sequence[Any]) -> Sequence[Any]:
    """Gradients of input, weights (a list), bias, scale and residual."""
    grad, grad_preactivation = grads
    layout_text, request = ctx.asked
    layout = read_layout(layout_text)
    input, scale, known, *weights = ctx.saved_tensors
    needs_weights = needs[1]
    wanted = Wanted(needs[0], any(needs_weights), *needs[2:])
    again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    if again or grad is None or grad_preactivation is not None or not _may_run(grad):
        saved = Saved(input, weights[0], scale, known, ctx.input_shape, ctx.input_channels_last)
        found, made = ragged_vector_jacobian(
            saved, weights, layout, request, grad, wanted, needs_weights, grad_preactivation
        )
        return found._replace(weight=made)  # type: ignore[arg-type]
    kernel_size = (weights[0].shape[2], weights[0].shape[3])
    request = request._replace(save_preactivation=False)
    unequal = UnequalGroups(layout_text, kernel_size)
    asked = BackwardRequest(request, ctx.input_shape, ctx.input_channels_last, wanted, unequal)
    operands = BackwardOperands(grad, input, ragged_weights.flat_of(weights, layout), scale, known)
    found = gradients(operands, asked, ops.BACKWARD)
    made = [None] * len(weights)
    if found.weight is not None:
        by_size = ragged_weights.views(found.weight, layout, kernel_size)
        made = [one if need else None for one, need in zip(by_size, needs_weights, strict=True)]
    return found._replace(weight=made)  # type: ignore[arg-type]


def _may_run(grad: Tensor) -> bool:
    """Could kernels compute gradients of this tensor? On plain CPU tensors torch's operations need no operator."""
    return grad.is_cuda or executors.executor_of_cpu_tensors() is not None


def _nest(row: Sequence[Any]) -> Sequence[Any]:
    return (row[0], tuple(row[1:-3]), *row[-3:])


RULE = rules.Rule(ops.FORWARD.run, RaggedOperands, _save, _gradients, _nest)
rules.register(ops.FORWARD, RULE)
