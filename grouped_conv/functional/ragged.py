"""`ragged_conv2d`: a convolution whose groups are unequal, overlap, or list the channels they read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from grouped_conv.call_values.geometry import as_tuple, parse_geometry
from grouped_conv.call_values.layout_text import known_text, write_layout
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.ragged_weights import cast_weights
from grouped_conv.call_values.request import Request
from grouped_conv.context import tracing
from grouped_conv.context.tracing import CallRecord
from grouped_conv.functional.autocasting import autocast_dtype, cast
from grouped_conv.functional.conv2d import IntOrPair, check_names, grouped_conv2d, why_not_ours
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.ops.ragged import convolve, in_torch_operations


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
    All groups are computed by one launch of our kernel, or by ATen with one convolution per size of groups. It stands
    under autograd, autocast, torch.compile and torch.func; gradients run by our kernels under the same policies.

    Args:
        input: `(N, C, H, W)` or `(C, H, W)`.
        weights: one tensor per size of groups, `(n * k, c, R, S)` for the n groups that read c channels and make k: as
            `layout.buckets` lists them. Weights that are not views of one flat storage, as `RaggedConv2d` keeps them,
            are copied into one at every call of the kernel.
        layout: who reads what.
        bias: `(K,)`, in the order of the output channels.
        stride, dilation: integer or `(height, width)`.
        padding: integer, `(height, width)`, `(top, bottom, left, right)`, `"same"` or `"valid"`.
        activation, residual, scale, precision, backend, negative_slope: as in `grouped_conv2d`.

    Raises:
        RuntimeError: for operands that make no convolution of this layout, naming the sizes; when `backend="kernel"` or
            policy `kernels` insists on a kernel that cannot run.
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
    choices = activation or "none", negative_slope, False, precision or "default", backend or "auto"
    kernel_size = (weights[0].shape[2], weights[0].shape[3])
    request = make_request(as_tuple(stride), as_tuple(padding), as_tuple(dilation), kernel_size, *choices)
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
    output = _by_torch(operands, layout, request, reason) if reason else convolve(operands, layout_text, request)
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


def _make_request(stride: Any, padding: Any, dilation: Any, kernel_size: Any, *choices: Any) -> Request:
    return Request(parse_geometry(stride, padding, dilation, kernel_size), *choices)


_cached_request = lru_cache(maxsize=4096)(_make_request)


def make_request(*attributes: Any) -> Request:
    """The request of (stride, padding, dilation, kernel size, activation, ...), all hashable; remembered."""
    return _make_request(*attributes) if torch.compiler.is_compiling() else _cached_request(*attributes)


def _prepared(operands: RaggedOperands, scale: Tensor | float | None, layout: GroupLayout) -> RaggedOperands:
    """The operands as autocast wants them, the scale as a vector."""
    input, weights, bias, _, residual = operands
    device_type = input.device.type
    dtype = autocast_dtype(device_type)
    if dtype is not None:
        input = cast(input, dtype, device_type)
        if all(weight.dtype not in (dtype, torch.float64) and weight.device.type == device_type for weight in weights):
            weights = tuple(cast_weights(weights, dtype, layout))
        bias = None if bias is None else cast(bias, dtype, device_type)
        residual = None if residual is None else cast(residual, dtype, device_type)
    return RaggedOperands(input, weights, bias, _scale_vector(scale, input, layout), residual)


def _scale_vector(scale: Tensor | float | None, input: Tensor, layout: GroupLayout) -> Tensor | None:
    """`scale` as a `(K,)` vector of the input's dtype."""
    if scale is None:
        return None
    if not isinstance(scale, Tensor):
        return torch.full((layout.out_channels,), scale, dtype=input.dtype, device=input.device)
    if scale.dim() == 0:
        scale = scale.to(input.device).expand(layout.out_channels)
    return scale.to(input.dtype).contiguous()


def _by_torch(operands: RaggedOperands, layout: GroupLayout, request: Request, reason: str) -> Tensor:
    """The call in torch's own operations, for operands outside the operator's reach."""
    if request.backend == "kernel":
        raise RuntimeError(f"backend='kernel' was asked for, but {reason}")
    if not torch.compiler.is_compiling():
        tracing.record(CallRecord(None, "aten", reason))
    return in_torch_operations(operands, layout, request)
