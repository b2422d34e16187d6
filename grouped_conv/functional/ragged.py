"""`ragged_conv2d`: a convolution whose groups are unequal, overlap, or list the channels they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grouped_conv.autograd.ragged import convolve, in_torch_operations
from grouped_conv.call_values.layout_text import known_text, write_layout
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.ragged_weights import cast_weights
from grouped_conv.call_values.request import RaggedRequest, Request
from grouped_conv.functional.autocasting import AUTOCAST_DEVICES, cast
from grouped_conv.functional.conv2d import (
    IntOrPair,
    check_names,
    grouped_conv2d,
    make_request,
    record_torchs,
    scale_vector,
    why_not_ours,
)
from grouped_conv.kernels.values.layout import GroupLayout


def ragged_conv2d(
    input: Tensor,
    weights: Sequence[Tensor],
    layout: GroupLayout,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: IntOrPair = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    scale: Tensor | float | None = None,
    precision: str | None = None,
    backend: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """`activation(scale * conv(input, weights) + bias + residual)` with the groups of `layout`.

    Group g convolves the input channels `layout.inputs_of(g)` and makes the next `layout.outputs[g]` output channels.
    One launch of our kernel computes all groups, or ATen computes one convolution per size of groups. It works with
    autograd, autocast, torch.compile and torch.func. Our kernels compute gradients under the same policies.

    Args:
        input: `(N, C, H, W)` or `(C, H, W)`.
        weights: one tensor per size of groups, `(n * k, c, R, S)` for the n groups that read c channels and make k: as
            `layout.buckets` lists them. Weights that are not views of one flat storage, as `RaggedConv2d` keeps them,
            are copied into one at every call of the kernel.
        layout: which input channels each group reads, and how many output channels it makes.
        bias: `(K,)`, in the order of the output channels.
        stride, dilation: integer or `(height, width)`.
        padding: integer, `(height, width)`, `(top, bottom, left, right)`, `"same"` or `"valid"`.
        activation, residual, scale, precision, backend, negative_slope: as in `grouped_conv2d`.

    Raises:
        RuntimeError: for operands that make no convolution of this layout, naming the sizes; when `backend="kernel"` or
            policy `kernels` requires a kernel that cannot run.
        ValueError: for an unknown activation, precision or backend, naming what is accepted.
    """
    check_names(activation, precision, backend)
    weights = tuple(weights)
    check_weights(weights, layout)
    if layout.is_uniform:
        return grouped_conv2d(
            input,
            weights[0],
            bias,
            stride,
            padding,
            dilation,
            layout.groups,
            activation=activation,
            residual=residual,
            scale=scale,
            precision=precision,
            backend=backend,
            negative_slope=negative_slope,
        )
    choices = activation, negative_slope, False, precision, backend
    request = make_request(stride, padding, dilation, weights[0].shape[2:], *choices)
    text = write_layout(layout) if torch.compiler.is_compiling() else known_text(layout)
    return run_request(RaggedOperands(input, weights, bias, None, residual), scale, layout, text, request)


def run_request(
    operands: RaggedOperands, scale: Tensor | float | None, layout: GroupLayout, layout_text: str, request: Request
) -> Tensor:
    """One call with its attributes checked; `scale` as users give it."""
    input, residual = operands.input, operands.residual
    unbatched = input.dim() == 3
    if unbatched:
        residual = None if residual is None else residual.unsqueeze(0)
        operands = operands._replace(input=input.unsqueeze(0), residual=residual)
    operands = _prepared(operands, scale, layout)
    reason = why_not_ours(operands.input, operands.weights[0])
    if reason:
        record_torchs(request.backend, reason)
        output = in_torch_operations(operands, layout, request)
    else:
        output = convolve(operands, RaggedRequest(layout_text, request))
    return output.squeeze(0) if unbatched else output


def check_weights(weights: Sequence[Tensor], layout: GroupLayout) -> None:
    """Refuse a wrong number of weights, and weights that have no kernel size.

    Raises:
        RuntimeError: naming the numbers.
    """
    if len(weights) != len(layout.buckets):
        raise RuntimeError(f"{layout} has {len(layout.buckets)} sizes of groups, but got {len(weights)} weights")
    for index, weight in enumerate(weights):
        if weight.dim() != 4:
            raise RuntimeError(f"weight {index} must be 4-dimensional, but got one of size {list(weight.shape)}")


def _prepared(operands: RaggedOperands, scale: Tensor | float | None, layout: GroupLayout) -> RaggedOperands:
    """The operands as autocast wants them, the scale as a vector."""
    input, weights, bias, _, residual = operands
    device_type = input.device.type
    if device_type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        input, bias, residual = (cast(tensor, device_type) for tensor in (input, bias, residual))
        if all(weight.dtype not in (dtype, torch.float64) and weight.device.type == device_type for weight in weights):
            weights = tuple(cast_weights(weights, dtype, layout))
    vector = None if scale is None else scale_vector(scale, input, layout.out_channels)
    return RaggedOperands(input, weights, bias, vector, residual)
