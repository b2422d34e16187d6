"""The torch operator `grouped_conv::separable_conv2d`: schema, fake and real implementation, and its derivative.

`groups` is `input.size(1) / weight.size(1)`, padding is `(top, bottom, left, right)`. The operator stands below
autocast. Its backward computes the tensor between the two convolutions again and uses each convolution's own formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from grouped_conv.autograd import differentiation
from grouped_conv.by_torch.gradients import Saved, needs_preactivation
from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.call_values.separable_request import SeparableOperands, SeparableRequest
from grouped_conv.planning import separable as separable_dispatch

TENSORS = len(SeparableOperands._fields)

library = torch.library.Library("grouped_conv", "FRAGMENT")
library.define(
    "separable_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor pointwise_weight, "
    "Tensor? pointwise_bias, Tensor? pointwise_scale, Tensor? residual, SymInt[2] stride, SymInt[4] padding, "
    "SymInt[2] dilation, str activation, float negative_slope, str pointwise_activation, "
    "float pointwise_negative_slope, str precision, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
separable_conv2d = torch.ops.grouped_conv.separable_conv2d.default


def as_request(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], *choices: Any
) -> SeparableRequest:
    """The attributes of a call as one value."""
    return SeparableRequest(Geometry(tuple(stride), tuple(padding), tuple(dilation)), *choices)  # type: ignore[arg-type]


def call(operands: SeparableOperands, request: SeparableRequest) -> Tensor:
    """Call the operator."""
    window = request.geometry
    output: Tensor = separable_conv2d(
        *operands,
        window.stride,
        window.padding,
        window.dilation,
        request.activation,
        request.negative_slope,
        request.pointwise_activation,
        request.pointwise_negative_slope,
        request.precision,
        request.backend,
    )
    return output


Run = Callable[[SeparableOperands, tuple[Any, ...], Callable[..., SeparableRequest]], Tensor]


def _implementation(run: Run) -> Callable[..., Tensor]:
    def implementation(*arguments: Any) -> Tensor:
        operands, (stride, padding, dilation, *choices) = arguments[:TENSORS], arguments[TENSORS:]
        attributes = (tuple(stride), tuple(padding), tuple(dilation), *choices)
        return run(SeparableOperands(*operands), attributes, as_request)

    return implementation


def _fake_run(
    operands: SeparableOperands, attributes: tuple[Any, ...], make: Callable[..., SeparableRequest]
) -> Tensor:
    hidden, shape = separable_dispatch.check(operands, make(*attributes))
    return layouts.empty_output(hidden, operands.pointwise_weight, shape)


for _key in ("CPU", "CUDA"):
    library.impl("separable_conv2d", _implementation(separable_dispatch.run), _key)
torch.library.register_fake("grouped_conv::separable_conv2d", _implementation(_fake_run), lib=library)


@register_flop_formula(torch.ops.grouped_conv.separable_conv2d)
def _flops(
    input: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    scale: Any,
    pointwise_weight: Sequence[int],
    *_: Any,
    out_shape: Sequence[int],
    **__: Any,
) -> int:
    """Two per multiply-accumulate of each convolution; epilogues are not counted."""
    mid_channels, c_per_group, kernel_h, kernel_w = weight
    batch, out_channels, out_h, out_w = out_shape
    return 2 * batch * out_h * out_w * mid_channels * (c_per_group * kernel_h * kernel_w + out_channels)


def convolve(operands: SeparableOperands, request: SeparableRequest) -> Tensor:
    """Run the call with derivatives of every kind that the surroundings ask for.

    Under torch.func and forward-mode AD the two convolutions are calls of their own, which have those derivatives.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        hidden = differentiation.convolve(operands.first, request.first)
        return differentiation.convolve(operands.second(hidden), request.second)
    if torch.compiler.is_compiling():
        return call(operands, request)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands):
        return _EagerSeparable.apply(*operands, request)
    with torch._C._AutoDispatchBelowAutograd():
        return call(operands, request)


class _EagerSeparable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        operands, request = SeparableOperands(*arguments[:TENSORS]), arguments[TENSORS]
        with torch._C._AutoDispatchBelowAutograd():
            output = call(operands, request)
        _save(ctx, operands, request, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        return (*_vector_jacobian(ctx, grad), None)


def _save(ctx: Any, operands: SeparableOperands, request: SeparableRequest, output: Tensor) -> None:
    ctx.request = request
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*operands, output)


def _vector_jacobian(ctx: Any, grad: Tensor | None) -> list[Tensor | None]:
    """Gradients of the eight tensors from that of the output."""
    if grad is None:
        return [None] * TENSORS
    *tensors, output = ctx.saved_tensors
    operands, request, needs = SeparableOperands(*tensors), ctx.request, ctx.needs_input_grad
    before = any(needs[:4])
    hidden, hidden_argument = _again(operands.first, request.first)
    argument = None
    if needs_preactivation(request.pointwise_activation, request.pointwise_negative_slope):
        argument = _again(operands.second(hidden), request.second)[1]
    by_second = _one(grad, operands.second(hidden), request.second, output, argument, (before, *needs[4:8]))
    by_first: list[Tensor | None] = [None] * 5
    if before:
        wanted = (*needs[:4], False)
        by_first = _one(by_second[0], operands.first, request.first, hidden, hidden_argument, wanted)
    return [*by_first[:4], *by_second[1:]]


def _again(operands: Operands, request: Request) -> tuple[Tensor, Tensor | None]:
    """One convolution, computed again: its output, and the activation's argument where a derivative needs it."""
    if needs_preactivation(request.activation, request.negative_slope):
        request = request.saving_preactivation()
    result = differentiation.convolve_saving(operands, request)
    return (result, None) if isinstance(result, Tensor) else result


def _one(
    grad: Tensor | None,
    operands: Operands,
    request: Request,
    output: Tensor,
    argument: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of one convolution's five operands."""
    saved = Saved.of(operands, request, output, argument, keeps_input=True)
    return differentiation.gradients(saved, request, grad, None, needs)


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    _save(ctx, SeparableOperands(*inputs[:TENSORS]), as_request(*inputs[TENSORS:]), output)


def _backward(ctx: Any, grad: Tensor | None) -> Any:
    return (*_vector_jacobian(ctx, grad), *[None] * 9)


torch.library.register_autograd("grouped_conv::separable_conv2d", _backward, setup_context=_setup, lib=library)
