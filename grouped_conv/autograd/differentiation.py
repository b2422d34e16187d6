"""Autograd, forward-mode AD and vmap of a convolution, all from one set of formulas.

The registered formulas serve compilation and export, `rules.EagerCall` serves eager code, and `_TransformedConvolution`
serves torch.func and forward-mode AD, which neither of the others can. Under torch.func inside torch.compile, torch's
own operations run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from grouped_conv.autograd import rules
from grouped_conv.autograd.batching import fold_batch
from grouped_conv.by_torch.gradients import (
    Saved,
    needs_preactivation,
    per_channel,
    shuffle_channels,
    through_activation,
    torch_call,
    vector_jacobian,
)
from grouped_conv.call_values.request import BackwardOperands, BackwardRequest, Gradients, Operands, Request, Wanted
from grouped_conv.ops import conv2d as ops
from grouped_conv.ops.operator import library, wants_gradient
from grouped_conv.planning.plan_cache import Results

Run = Callable[[Operands, Request], Results]


def convolve(operands: Operands, request: Request) -> Tensor:
    """Run the call with derivatives of every kind that the surroundings ask for."""
    output = convolve_saving(operands, request)[0]
    assert output is not None
    return output


def convolve_saving(operands: Operands, request: Request) -> Results:
    """The output, and the activation's argument where the request says to save it or a derivative needs it."""
    recorded = wants_gradient(operands)
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():  # registered formulas fail there, silently for forward mode
            return torch_call(operands, request)[0], None
        return ops.dispatch(operands, for_backward(request) if recorded else request)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        result = _TransformedConvolution.apply(*operands, _Opaque(for_backward(request)))
        return (result, None) if isinstance(result, Tensor) else result
    if recorded:
        return rules.EagerCall.apply(RULE, for_backward(request), *operands)
    return ops.run(operands, request)


def for_backward(request: Request) -> Request:
    """The request, saving the preactivation if the derivative needs it."""
    needs = needs_preactivation(request.activation, request.negative_slope)
    return request.saving_preactivation() if needs else request


def _save(
    ctx: Any, operands: Operands, request: Request, results: Results, needs: Sequence[bool], *, always: bool = False
) -> None:
    """Keep what the gradients need, `always` the input too: for tangents and second derivatives of torch.func."""
    output, preactivation = (*results, None)[:2]
    assert output is not None
    ctx.request = request
    ctx.bias = operands.bias  # keeps autocast's cast of it alive for the next use, as saving keeps the weight's
    wanted = _wanted(needs)
    saved = Saved.of(operands, request, output, preactivation, always or wanted.weight or wanted.scale)
    ctx.input_shape, ctx.input_channels_last = saved.input_shape, saved.input_channels_last
    ctx.save_for_backward(*saved[:4])


def _saved(ctx: Any) -> Saved:
    input, weight, scale, known = ctx.saved_tensors
    return Saved(input, weight, scale, known, ctx.input_shape, ctx.input_channels_last)


def _wanted(needs: Sequence[bool]) -> Wanted:
    """Which of the five operands need a gradient; the plain operator has neither scale nor residual."""
    return Wanted(*(*needs, False, False)[:5])


def _gradients(ctx: Any, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> Gradients:
    grad, grad_preactivation = (*grads, None)[:2]
    return gradients(_saved(ctx), ctx.request, grad, grad_preactivation, _wanted(needs))


def gradients(
    saved: Saved, request: Request, grad: Tensor | None, grad_preactivation: Tensor | None, wanted: Wanted
) -> Gradients:
    """Gradients of the five operands: by the operator that may run our kernels, unless they are differentiated again.

    Args:
        grad, grad_preactivation: of the output and of the activation's argument, where it was returned.
    """
    again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    if again or grad is None or grad_preactivation is not None or not any(wanted):
        return vector_jacobian(saved, request, grad, grad_preactivation, wanted)
    request = request._replace(save_preactivation=False)
    asked = BackwardRequest(request, saved.input_shape, saved.input_channels_last, wanted)
    return ops.gradients(BackwardOperands(grad, *saved[:4]), asked)


RULE = rules.Rule(ops.run, Operands, _save, _gradients)
TRANSFORMED = RULE._replace(save=partial(_save, always=True))


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
    along_output = through_activation(request, inner, saved.known)
    return shuffle_channels(along_output, request.output_shuffle), inner


@dataclass(frozen=True, slots=True)
class _Opaque:
    """A request that torch.func does not take apart as it takes tuples apart."""

    request: Request


class _TransformedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Any:
        output, preactivation = ops.dispatch(Operands(*arguments[:5]), arguments[5].request)
        return output if preactivation is None else (output, preactivation)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        operands, request = Operands(*inputs[:5]), inputs[5].request
        results = (output, None) if isinstance(output, Tensor) else output
        rules.save(ctx, TRANSFORMED, operands, request, results, ctx.needs_input_grad[:5])
        ctx.save_for_forward(*ctx.to_save)
        ctx.output_shape = results[0].shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return (*rules.gradients(ctx, TRANSFORMED, grads, ctx.needs_input_grad[:5]), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        output, inner = _jacobian_vector(ctx, tangents[:5])
        return (output, inner) if ctx.request.save_preactivation else output

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        operands, request = Operands(*arguments[:5]), arguments[5].request
        output, dim, preactivation = _vmap(convolve_saving, info, in_dims[:5], operands, request)
        return (output, dim) if preactivation is None else ((output, preactivation), (dim, dim))


def _vmap(run: Run, info: Any, dims: Any, operands: Operands, request: Request) -> tuple[Tensor, int, Tensor | None]:
    """The batched output, where its batch is, and the batched preactivation if the request says to save it."""
    input, dim = operands.input, dims[0]
    if request.input_shuffle > 1:  # batches may be folded into channels, so each is shuffled on its own
        input = shuffle_channels(input, request.input_shuffle, 1 if dim is None or dim > 1 else 2)
    folded, unfold = fold_batch(info.batch_size, dims, operands._replace(input=input))
    output, preactivation = run(folded, request.without_shuffles())
    assert output is not None
    value, dim = unfold(output)
    value = shuffle_channels(value, request.output_shuffle, 2)
    if preactivation is None or not request.save_preactivation:
        return value, dim, None
    return value, dim, unfold(preactivation)[0]


def _batch_plain(info: Any, in_dims: Any, *arguments: Any) -> Any:
    operands, request = ops.PLAIN.read(arguments)
    return _vmap(ops.dispatch, info, (*in_dims[:3], None, None), operands, request)[:2]


def _batch_fused(info: Any, in_dims: Any, *arguments: Any) -> Any:
    operands, request = ops.FUSED.read(arguments)
    output, dim, preactivation = _vmap(ops.dispatch, info, in_dims[:5], operands, request)
    if preactivation is None:
        return (output, output.new_empty(0)), (dim, None)
    return (output, preactivation), (dim, dim)


for _operator, _batch in ((ops.PLAIN, _batch_plain), (ops.FUSED, _batch_fused)):
    rules.register(_operator, RULE)
    torch.library.register_vmap(_operator.name, _batch, lib=library)
