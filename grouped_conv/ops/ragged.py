"""The torch operator `grouped_conv::ragged_conv2d`: schema, fake and real implementations, derivatives.

The layout travels as text (`layout_text`). The operator stands below autocast, which the Python front handles.
Gradients run by our kernels under the forward pass's policies (`ragged_backward`), second derivatives by torch's
operations, per size bucket; under torch.func and forward-mode AD the whole call does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from grouped_conv.by_torch import forward_context
from grouped_conv.by_torch.gradients import Saved, compose, known_of, needs_preactivation, torch_convolution
from grouped_conv.by_torch.ragged import ragged_convolution, ragged_vector_jacobian
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.ragged_checks import RaggedOperands, check_operands, output_format
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.ops import ragged_backward
from grouped_conv.ops.conv2d import library
from grouped_conv.planning import ragged as ragged_call

library.define(
    "ragged_conv2d(Tensor input, Tensor[] weights, Tensor? bias, Tensor? scale, Tensor? residual, str layout,"
    " SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, str activation, float negative_slope,"
    " bool save_preactivation, str precision, str backend) -> (Tensor output, Tensor preactivation)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
ragged_conv2d = torch.ops.grouped_conv.ragged_conv2d.default
TENSORS = 5


def as_request(stride: Any, padding: Any, dilation: Any, *rest: Any) -> Request:
    """The attributes of a call behind its layout as one value."""
    return Request(Geometry(tuple(stride), tuple(padding), tuple(dilation)), *rest)


def call(operands: RaggedOperands, layout_text: str, request: Request) -> tuple[Tensor, Tensor]:
    """Call the operator: the output, and the preactivation (empty unless the request says to save it)."""
    window = request.geometry
    return ragged_conv2d(
        operands.input,
        list(operands.weights),
        *operands[2:],
        layout_text,
        window.stride,
        window.padding,
        window.dilation,
        request.activation,
        request.negative_slope,
        request.save_preactivation,
        request.precision,
        request.backend,
    )


def _implementation(
    input: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    layout: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    operands = RaggedOperands(input, tuple(weights), bias, scale, residual)
    attributes = (tuple(stride), tuple(padding), tuple(dilation), *rest)
    output, preactivation = ragged_call.run(operands, layout, attributes, as_request)
    return output, output.new_empty(0) if preactivation is None else preactivation


def _fake(
    input: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    layout: str,
    *attributes: Any,
) -> tuple[Tensor, Tensor]:
    operands = RaggedOperands(input, tuple(weights), bias, scale, residual)
    request = as_request(*attributes)
    shape = check_operands(operands, read_layout(layout), request)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=output_format(operands))
    return output, torch.empty_like(output) if request.save_preactivation else output.new_empty(0)


for _key in ("CPU", "CUDA"):
    library.impl("ragged_conv2d", _implementation, _key)
torch.library.register_fake("grouped_conv::ragged_conv2d", _fake, lib=library)


@register_flop_formula(torch.ops.grouped_conv.ragged_conv2d)
def _flops(input: Any, weights: Sequence[Sequence[int]], *_: Any, out_shape: Sequence[Any], **__: Any) -> int:
    """Two per multiply-accumulate, as torch counts a convolution; the epilogue is not counted."""
    batch, _, out_h, out_w = out_shape[0]
    return 2 * batch * out_h * out_w * sum(math.prod(weight) for weight in weights)


def convolve(operands: RaggedOperands, layout_text: str, request: Request) -> Tensor:
    """Run the call with derivatives of every kind that the surroundings ask for."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return in_torch_operations(operands, read_layout(layout_text), request)
    tensors = (operands.input, *operands.weights, *operands[2:])
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if wants_gradient and needs_preactivation(request.activation, request.negative_slope):
        request = request.saving_preactivation()
    if torch.compiler.is_compiling():
        return call(operands, layout_text, request)[0]
    if wants_gradient:
        return _EagerConvolution.apply(layout_text, request, operands.input, *operands[2:], *operands.weights)[0]
    with torch._C._AutoDispatchBelowAutograd():
        return call(operands, layout_text, request)[0]


def in_torch_operations(operands: RaggedOperands, layout: GroupLayout, request: Request) -> Tensor:
    """The whole call in torch's operations."""
    check_operands(operands, layout, request)
    input, weights, bias, scale, _ = operands
    early_bias = bias if scale is None else None
    value = ragged_convolution(input, weights, early_bias, layout, request.geometry, _by_functional)
    return compose(value, operands, request)[0]


def _by_functional(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """One bucket by `torch.nn.functional.conv2d`, which also takes what `aten.convolution` does not."""
    return torch_convolution(Operands(input, weight, bias), geometry)


def _save(
    ctx: Any,
    operands: RaggedOperands,
    layout_text: str,
    request: Request,
    results: tuple[Tensor, Tensor],
    keeps_input: bool,
) -> None:
    """Keep what the gradients need: the input where the weights or the scale need one."""
    ctx.layout_text, ctx.request = layout_text, request
    ctx.set_materialize_grads(False)
    forward_context.remember(ctx, operands.input)
    ctx.bias = operands.bias  # keeps autocast's cast of it alive for the next use, as saving keeps the weights'
    input = operands.input
    ctx.input_shape, ctx.input_channels_last = tuple(input.shape), is_channels_last(input.shape, input.stride())
    known = known_of(request, *results)
    ctx.save_for_backward(input if keeps_input else None, operands.scale, known, *operands.weights)


def _vector_jacobian(
    ctx: Any,
    grad: Tensor | None,
    grad_preactivation: Tensor | None,
    needs: Sequence[bool],
    needs_weights: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of input, bias, scale and residual, as far as needed, and of each weight."""
    input, scale, known, *weights = ctx.saved_tensors
    saved = Saved(input, weights[0], scale, known, ctx.input_shape, ctx.input_channels_last)
    again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    if again or grad is None or grad_preactivation is not None or not ragged_backward.may_run(grad):
        layout = read_layout(ctx.layout_text)
        return ragged_vector_jacobian(
            saved, weights, layout, ctx.request, grad, needs, needs_weights, grad_preactivation
        )
    wanted = (needs[0], any(needs_weights), *needs[1:])
    compute = partial(ragged_backward.call, grad, saved, weights, ctx.layout_text, ctx.request, wanted)
    found, by_size = forward_context.run(ctx, compute)
    made: list[Tensor | None] = [None] * len(weights)
    for index, one in enumerate(by_size):
        made[index] = one if needs_weights[index] else None
    return [found[0], *found[2:]], made


class _EagerConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout_text: str, request: Request, *tensors: Any) -> Any:
        input, bias, scale, residual, *weights = tensors
        operands = RaggedOperands(input, tuple(weights), bias, scale, residual)
        with torch._C._AutoDispatchBelowAutograd():
            result = call(operands, layout_text, request)
        needs = ctx.needs_input_grad[2:]
        _save(ctx, operands, layout_text, request, result, keeps_input=any(needs[4:]) or needs[2])
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[2:]
        tensors, weights = _vector_jacobian(ctx, grads[0], grads[1], needs[:4], needs[4:])
        return (None, None, *tensors, *weights)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    input, weights, bias, scale, residual, layout_text, *attributes = inputs
    operands = RaggedOperands(input, tuple(weights), bias, scale, residual)
    keeps = any(t is not None and t.requires_grad for t in (*weights, scale))
    _save(ctx, operands, layout_text, as_request(*attributes), output, keeps_input=keeps)


def _backward(ctx: Any, grad: Tensor | None, grad_preactivation: Tensor | None) -> Any:
    input, weights, *vectors = ctx.needs_input_grad[:TENSORS]
    tensors, grad_weights = _vector_jacobian(ctx, grad, grad_preactivation, (input, *vectors), weights)
    return (tensors[0], grad_weights, *tensors[1:], *[None] * 9)


torch.library.register_autograd("grouped_conv::ragged_conv2d", _backward, setup_context=_setup, lib=library)
