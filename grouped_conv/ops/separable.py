"""The operator `grouped_conv::separable_conv2d`: a grouped convolution followed by a 1x1 convolution.

`groups` is `input.size(1) / weight.size(1)`, padding is `(top, bottom, left, right)`. Autocast is applied before the
operator, in `functional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.separable_request import SeparableOperands, SeparableRequest
from grouped_conv.ops.conv2d import WINDOW
from grouped_conv.ops.operator import Operator, geometry_of
from grouped_conv.planning.separable import PLANNER, check


def _request(stride: Any, padding: Any, dilation: Any, *choices: Any) -> SeparableRequest:
    return SeparableRequest(geometry_of(stride, padding, dilation), *choices)


def _fake(operands: SeparableOperands, request: SeparableRequest) -> tuple[Tensor]:
    hidden, shape = check(operands, request)
    return (layouts.empty_output(hidden, operands.pointwise_weight, shape),)


def _flops(
    input: Any, weight: Sequence[int], bias: Any, scale: Any, *rest: Any, out_shape: Sequence[int], **named: Any
) -> int:
    """Two per multiply-accumulate of each convolution; epilogues are not counted."""
    mid_channels, c_per_group, kernel_h, kernel_w = weight
    batch, out_channels, out_h, out_w = out_shape
    return 2 * batch * out_h * out_w * mid_channels * (c_per_group * kernel_h * kernel_w + out_channels)


SEPARABLE = Operator(
    "separable_conv2d",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor pointwise_weight, Tensor? pointwise_bias,"
    f" Tensor? pointwise_scale, Tensor? residual, {WINDOW}, str activation, float negative_slope,"
    " str pointwise_activation, float pointwise_negative_slope, str precision, str backend) -> Tensor",
    PLANNER,
    operands=SeparableOperands,
    request=_request,
    attributes=lambda request: (*request.geometry, *request[1:]),
    fake=_fake,
    flops=_flops,
)
