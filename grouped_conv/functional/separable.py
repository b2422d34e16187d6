"""`separable_conv2d`: a grouped convolution followed by a 1x1 convolution, in one kernel where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from grouped_conv.autograd.separable import convolve
from grouped_conv.call_values.separable_request import SeparableOperands, SeparableRequest
from grouped_conv.functional.conv2d import (
    IntOrPair,
    check_names,
    make_request,
    prepared,
    run_request,
    why_not_ours,
)


def separable_conv2d(
    input: Tensor,
    weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: IntOrPair = 1,
    groups: int | None = None,
    *,
    activation: str | None = None,
    pointwise_activation: str | None = None,
    scale: Tensor | float | None = None,
    pointwise_scale: Tensor | float | None = None,
    residual: Tensor | None = None,
    precision: str | None = None,
    backend: str | None = None,
    negative_slope: float = 0.01,
    pointwise_negative_slope: float = 0.01,
) -> Tensor:
    """`pointwise_activation(pointwise_scale * conv1x1(h) + pointwise_bias + residual)` of a grouped convolution's `h`.

    `h = activation(scale * conv2d(input, weight) + bias)`. `grouped_conv.trace()` shows one record of path `separable`
    if one kernel computed both. Otherwise it shows one of path `two_calls`, with the planner's reason, and the records
    of the two convolutions. The backward pass computes `h` again instead of keeping it.

    Args:
        input: `(N, C, H, W)` or `(C, H, W)`.
        weight: `(K, C / groups, R, S)`; `(C * multiplier, 1, R, S)` is a depthwise convolution.
        pointwise_weight: `(OUT_CHANNELS, K, 1, 1)`.
        bias, pointwise_bias: `(K,)` and `(OUT_CHANNELS,)`.
        stride, padding, dilation: of the grouped convolution, as in `grouped_conv2d`.
        groups: may be left out, because the shapes imply it; checked if given.
        activation, pointwise_activation: names of `grouped_conv.kernels.ACTIVATIONS`; none by default.
        scale, pointwise_scale: numbers, 0-d tensors or vectors like the biases.
        residual: added before the last activation; the output's shape.
        precision: of the products of float32 operands in both, `"ieee"` or `"tf32"`, as in `grouped_conv2d`.
        backend: `"aten"` forces two torch convolutions, `"kernel"` forces our kernels, one or two of them.
        negative_slope, pointwise_negative_slope: of `leaky_relu`.

    Raises:
        RuntimeError: for operands that make no convolution.
        ValueError: for an unknown name, for `groups` that the shapes contradict, and for a pointwise weight that is not
            1x1.
    """
    check_names(activation, precision, backend)
    check_names(pointwise_activation, None, None)
    _check_shapes(input, weight, pointwise_weight, groups)
    unbatched = input.dim() == 3
    if unbatched:
        input, residual = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    first = prepared(input, weight, bias, scale, None)
    second = prepared(first.input, pointwise_weight, pointwise_bias, pointwise_scale, residual)
    choices = activation, negative_slope, False, precision, backend
    wanted = make_request(stride, padding, dilation, weight.shape[2:], *choices)
    pointwise = pointwise_activation or "none", pointwise_negative_slope
    request = SeparableRequest(*wanted[:3], *pointwise, wanted.precision, wanted.backend)
    operands = SeparableOperands(*first[:4], *second[1:])
    if why_not_ours(operands.input, operands.weight) or why_not_ours(operands.input, operands.pointwise_weight):
        hidden = run_request(operands.first, request.first)
        output = run_request(operands.second(hidden), request.second)
    else:
        output = convolve(operands, request)
    return output.squeeze(0) if unbatched else output


def _check_shapes(input: Tensor, weight: Tensor, pointwise_weight: Tensor, groups: int | None) -> None:
    if weight.dim() != 4 or input.dim() not in (3, 4):
        raise ValueError(
            "need an input of 3 or 4 dimensions and a weight of 4, "
            f"but got input of size {list(input.shape)} and weight of size {list(weight.shape)}"
        )
    if pointwise_weight.dim() != 4 or tuple(pointwise_weight.shape[1:]) != (weight.shape[0], 1, 1):
        raise ValueError(
            f"pointwise_weight must have size [out_channels, {weight.shape[0]}, 1, 1] after a weight of size "
            f"{list(weight.shape)}, but got {list(pointwise_weight.shape)}"
        )
    if groups is not None and weight.shape[1] * groups != input.shape[-3]:
        raise ValueError(
            f"groups={groups} and weight of size {list(weight.shape)} need an input of {weight.shape[1] * groups} "
            f"channels, but got input of size {list(input.shape)}"
        )
