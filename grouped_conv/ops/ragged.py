"""The operators `grouped_conv::ragged_conv2d` and `ragged_conv2d_backward`, for unequal groups.

The layout travels as text (`layout_text`). The backward operator takes and returns all weights as one flat storage
(`ragged_weights`), which the kernels read and write. Autocast is applied before the operators, in `functional`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.request import BackwardOperands, BackwardRequest, RaggedRequest, Request, UnequalGroups
from grouped_conv.ops.conv2d import (
    EPILOGUE,
    GRADIENT_OPERANDS,
    GRADIENT_RESULTS,
    WINDOW,
    backward_attributes,
    backward_flops,
    backward_request,
    fake_gradients,
)
from grouped_conv.ops.operator import Operator, geometry_of
from grouped_conv.planning.backward import GRADIENTS
from grouped_conv.planning.forward import RAGGED, ragged_outputs


def _operands(input: Tensor, weights: Sequence[Tensor], *rest: Tensor | None) -> RaggedOperands:
    return RaggedOperands(input, tuple(weights), *rest)


def _request(layout: str, stride: Any, padding: Any, dilation: Any, *rest: Any) -> RaggedRequest:
    return RaggedRequest(layout, Request(geometry_of(stride, padding, dilation), *rest))


def _attributes(asked: RaggedRequest) -> tuple[Any, ...]:
    request = asked.request
    return (asked.layout, *request.geometry, *request[1:-2])  # no shuffles


def _flops(input: Any, weights: Sequence[Sequence[int]], *rest: Any, out_shape: Sequence[Any], **named: Any) -> int:
    """Two per multiply-accumulate, as torch counts a convolution; the epilogue is not counted."""
    batch, _, out_h, out_w = out_shape[0]
    return 2 * batch * out_h * out_w * sum(math.prod(weight) for weight in weights)


FORWARD = Operator(
    "ragged_conv2d",
    f"(Tensor input, Tensor[] weights, Tensor? bias, Tensor? scale, Tensor? residual, str layout, {WINDOW},"
    " str activation, float negative_slope, bool save_preactivation, str precision, str backend)"
    " -> (Tensor output, Tensor preactivation)",
    RAGGED,
    operands=_operands,
    request=_request,
    attributes=_attributes,
    fake=lambda operands, asked: ragged_outputs(operands, asked).empty(operands.input),
    wanted=lambda asked: (True, asked.request.save_preactivation),
    flops=_flops,
)


def _backward_request(
    input_size: Any, input_channels_last: bool, layout: str, kernel_size: Sequence[int], *rest: Any
) -> BackwardRequest:
    unequal = UnequalGroups(layout, (kernel_size[0], kernel_size[1]))
    return backward_request(input_size, input_channels_last, *rest)._replace(unequal=unequal)


def _backward_attributes(asked: BackwardRequest) -> tuple[Any, ...]:
    assert asked.unequal is not None
    size, last, *rest, _, _, wanted = backward_attributes(asked)  # no shuffles
    return (size, last, *asked.unequal, *rest, wanted)


BACKWARD = Operator(
    "ragged_conv2d_backward",
    f"({GRADIENT_OPERANDS}, SymInt[4] input_size, bool input_channels_last, str layout, SymInt[2] kernel_size,"
    f" {WINDOW}, {EPILOGUE}, bool[5] wanted) -> {GRADIENT_RESULTS}",
    GRADIENTS,
    operands=BackwardOperands,
    request=_backward_request,
    attributes=_backward_attributes,
    fake=fake_gradients,
    wanted=lambda asked: asked.wanted,
    flops=backward_flops,
)
