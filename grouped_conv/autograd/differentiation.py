"""Autograd, forward-mode AD and vmap of a convolution: three callers of one set of formulas.

The operators' registered formulas serve compilation and export, `_EagerConvolution` serves eager code (it costs half as
much on the host), and `_TransformedConvolution` serves torch.func and forward-mode AD, which neither of the others can.
Under torch.func inside torch.compile, torch's own operations run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from grouped_conv.autograd.batching import fold_batch
from grouped_conv.by_torch import forward_context
from grouped_conv.by_torch.gradients import (
    Saved,
    gradient_behind,
    needs_preactivation,
    per_channel,
    shuffle_channels,
    torch_call,
    vector_jacobian,
)
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.ops import conv2d as ops
from grouped_conv.ops import conv2d_backward as backward_ops

Result = Tensor | tuple[Tensor, Tensor]
"""The output, with the activation's argument if the request says to save it."""

Run = Callable[[Operands, Request], Result]


def convolve(operands: Operands, request: Request) -> Tensor:
    """Run the call with derivatives of every kind that the surroundings ask for."""
    result = convolve_saving(operands, request)
    return result if isinstance(result, Tensor) else result[0]


def convolve_saving(operands: Operands, request: Request) -> Result:
    """`convolve`, with the activation's argument where the request says to save it or a derivative needs it."""
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():  # registered formulas fail there, silently for forward mode
            return torch_call(operands, request)[0]
        return ops.call(operands, _for_backward(request, wants_gradient))
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _TransformedConvolution.apply(*operands, _for_backward(request, True))
    if wants_gradient:
        return _EagerConvolution.apply(*operands, _for_backward(request, True))
    with torch._C._AutoDispatchBelowAutograd():
        return ops.call(operands, request)


def _for_backward(request: Request, wants_gradient: bool) -> Request:
    """The request, saving the preactivation if a derivative will be taken that needs it."""
    if not wants_gradient or not needs_preactivation(request.activation, request.negative_slope):
        return request
    return request.saving_preactivation()


def _save(
    ctx: Any,
    operands: Operands,
    request: Request,
    output: Tensor,
    preactivation: Tensor | None,
    *,
    always: bool = False,
    fused: bool = True,
) -> None:
    """Keep what the gradients need, `always` the input too: for tangents and second derivatives of torch.func."""
    ctx.request, ctx.is_fused = request, fused
    ctx.set_materialize_grads(False)
    forward_context.remember(ctx, operands.input)
    ctx.bias = operands.bias  # keeps autocast's cast of it alive for the next use, as saving keeps the weight's
    needs = _needs(ctx)
    keeps_input = always or needs[1] or needs[3]
    saved = Saved.of(operands, request, output, preactivation, keeps_input)
    ctx.input_shape, ctx.input_channels_last = saved.input_shape, saved.input_channels_last
    ctx.save_for_backward(*saved[:4])


def _saved(ctx: Any) -> Saved:
    input, weight, scale, known = ctx.saved_tensors
    return Saved(input, weight, scale, known, ctx.input_shape, ctx.input_channels_last)


def _needs(ctx: Any) -> tuple[bool, ...]:
    """Which of the five operands need a gradient; the plain operator has neither scale nor residual."""
    needs = tuple(ctx.needs_input_grad)
    return needs[:5] if ctx.is_fused else (*needs[:3], False, False)


def _gradients(ctx: Any, grad: Tensor | None, grad_preactivation: Tensor | None = None) -> list[Tensor | None]:
    compute = partial(gradients, _saved(ctx), ctx.request, grad, grad_preactivation, _needs(ctx))
    return forward_context.run(ctx, compute)


def gradients(
    saved: Saved, request: Request, grad: Tensor | None, grad_preactivation: Tensor | None, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the five operands: by the operator that may run our kernels, unless they are differentiated again.

    Args:
        grad, grad_preactivation: of the output and of the activation's argument, where it was returned.
        needs: which of input, weight, bias, scale and residual need a gradient.
    """
    again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    if again or grad is None or grad_preactivation is not None or not any(needs):
        return vector_jacobian(saved, request, grad, grad_preactivation, needs)
    return backward_ops.call(grad, saved, request, needs)


def _jacobian_vector(ctx: Any, tangents: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """Tangents of the output and of the activation's argument, from those of the five operands."""
    saved, request = _saved(ctx), ctx.request
    input, weight, scale = saved.some_input(), saved.weight, saved.scale
    plain = request.convolution_only()
    along_input, along_weight, along_bias, along_scale, along_residual = tangents
    input = shuffle_channels(input, request.input_shuffle)
    parts = []
    if along_input is not None:
        along_input = shuffle_channels(along_input, request.input_shuffle)
        parts.append(convolve(Operands(along_input, weight), plain))
    if along_weight is not None:
        parts.append(convolve(Operands(input, along_weight), plain))
    if scale is not None:
        parts = [part * per_channel(scale) for part in parts]
    if along_scale is not None:
        parts.append(convolve(Operands(input, weight), plain) * per_channel(along_scale))
    if along_bias is not None:
        parts.append(per_channel(along_bias).expand(ctx.output_shape))
    if along_residual is not None:
        parts.append(along_residual)
    inner = sum(parts[1:], parts[0])
    along_output = gradient_behind(request, inner, saved.known)
    return shuffle_channels(along_output, request.output_shuffle), inner


class _EagerConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        operands, request = Operands(*arguments[:5]), arguments[5]
        with torch._C._AutoDispatchBelowAutograd():
            result = ops.call(operands, request)
        output, preactivation = (result, None) if isinstance(result, Tensor) else result
        _save(ctx, operands, request, output, preactivation)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return (*_gradients(ctx, *grads), None)


class _TransformedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Any:
        return ops.call(Operands(*arguments[:5]), arguments[5])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        operands = Operands(*inputs[:5])
        value, preactivation = (output, None) if isinstance(output, Tensor) else output
        _save(ctx, operands, inputs[5], value, preactivation, always=True)
        ctx.save_for_forward(*ctx.to_save)
        ctx.output_shape = value.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return (*_gradients(ctx, *grads), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        output, inner = _jacobian_vector(ctx, tangents[:5])
        return (output, inner) if ctx.request.save_preactivation else output

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        output, dim, preactivation = _vmap(convolve_saving, info, in_dims[:5], Operands(*arguments[:5]), arguments[5])
        return (output, dim) if preactivation is None else ((output, preactivation), (dim, dim))


def _vmap(run: Run, info: Any, dims: Any, operands: Operands, request: Request) -> tuple[Tensor, int, Tensor | None]:
    """The batched output, where its batch is, and the batched preactivation if the request says to save it."""
    input, dim = operands.input, dims[0]
    if request.input_shuffle > 1:  # batches may be folded into channels, so each is shuffled on its own
        input = shuffle_channels(input, request.input_shuffle, 1 if dim is None or dim > 1 else 2)
    folded, unfold = fold_batch(info.batch_size, dims, operands._replace(input=input))
    result = run(folded, request.without_shuffles())
    output, preactivation = (result, None) if isinstance(result, Tensor) else result
    value, dim = unfold(output)
    value = shuffle_channels(value, request.output_shuffle, 2)
    if preactivation is None or not request.save_preactivation:
        return value, dim, None
    return value, dim, unfold(preactivation)[0]


def _plain_setup(ctx: Any, inputs: Any, output: Any) -> None:
    input, weight, bias, *attributes = inputs
    _save(ctx, Operands(input, weight, bias), ops.plain_request(*attributes), output, None, fused=False)


def _plain_backward(ctx: Any, grad: Tensor | None) -> Any:
    return (*_gradients(ctx, grad)[:3], *[None] * 5)


def _plain_vmap(info: Any, in_dims: Any, input: Any, weight: Any, bias: Any, *attributes: Any) -> Any:
    dims = (*in_dims[:3], None, None)
    return _vmap(ops.call, info, dims, Operands(input, weight, bias), ops.plain_request(*attributes))[:2]


def _fused_setup(ctx: Any, inputs: Any, output: Any) -> None:
    request = ops.fused_request(*inputs[5:])
    _save(ctx, Operands(*inputs[:5]), request, output[0], output[1] if request.save_preactivation else None)


def _fused_backward(ctx: Any, grad: Tensor | None, grad_preactivation: Tensor | None) -> Any:
    return (*_gradients(ctx, grad, grad_preactivation), *[None] * 10)


def _fused_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    request = ops.fused_request(*arguments[5:])
    output, dim, preactivation = _vmap(ops.call, info, in_dims[:5], Operands(*arguments[:5]), request)
    if preactivation is None:
        return (output, output.new_empty(0)), (dim, None)
    return (output, preactivation), (dim, dim)


for _name, _setup, _backward, _batch in (
    ("conv2d", _plain_setup, _plain_backward, _plain_vmap),
    ("conv2d_fused", _fused_setup, _fused_backward, _fused_vmap),
):
    torch.library.register_autograd(f"grouped_conv::{_name}", _backward, setup_context=_setup, lib=ops.library)
    torch.library.register_vmap(f"grouped_conv::{_name}", _batch, lib=ops.library)
