"""The operators `grouped_conv::ragged_conv2d` and `ragged_conv2d_backward`, for unequal groups.

The layout travels as text (`layout_text`). The backward operator takes and returns all weights as one flat storage
(`ragged_weights`), which the kernels read and write. Autocast is applied before the operators, in `functional`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.layout_text import read_layout
from grouped_conv.call_values.ragged_checks import RaggedOperands, check_operands
from grouped_conv.call_values.request import (
    BackwardOperands,
    BackwardRequest,
    RaggedRequest,
    Request,
    UnequalGroups,
    Wanted,
)
from grouped_conv.ops.conv2d import EPILOGUE, GRADIENT_OPERANDS, GRADIENT_RESULTS, WINDOW, fake_gradients
from grouped_conv.ops.operator import Operator, geometry_of
from grouped_conv.planning.backward import GRADIENTS
from grouped_conv.planning.forward import RAGGED


def _operands(input: Tensor, weights: Sequence[Tensor], *rest: Tensor | None) -> RaggedOperands:
    return RaggedOperands(input, tuple(weights), *rest)


def _request(layout: str, stride: Any, padding: Any, dilation: Any, *rest: Any) -> RaggedRequest:
    return RaggedRequest(layout, Request(geometry_of(stride, padding, dilation), *rest))


def _attributes(asked: RaggedRequest) -> tuple[Any, ...]:
    request = asked.request
    return (asked.layout, *request.geometry, *request[1:-2])  # no shuffles


def _fake(operands: RaggedOperands, asked: RaggedRequest) -> tuple[Tensor, Tensor | None]:
    input = operands.input
    shape = check_operands(operands, read_layout(asked.layout), asked.request)
    layout = layouts.output_format(input, *operands.weights)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
    return output, torch.empty_like(output) if asked.request.save_preactivation else None


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
    fake=_fake,
    wanted=lambda asked: (True, asked.request.save_preactivation),
    flops=_flops,
)


def _backward_request(
    input_size: Sequence[int],
    input_channels_last: bool,
    layout: str,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    negative_slope: float,
    precision: str,
    backend: str,
    wanted: Sequence[bool],
) -> BackwardRequest:
    window = geometry_of(stride, padding, dilation)
    request = Request(window, activation, negative_slope, precision=precision, backend=backend)
    unequal = UnequalGroups(layout, (kernel_size[0], kernel_size[1]))
    return BackwardRequest(request, tuple(input_size), input_channels_last, Wanted(*wanted), unequal)


def _backward_attributes(asked: BackwardRequest) -> tuple[Any, ...]:
    request, unequal = asked.request, asked.unequal
    assert unequal is not None
    epilogue = request.activation, request.negative_slope, request.precision, request.backend
    return (
        asked.input_shape,
        asked.input_channels_last,
        *unequal,
        *request.geometry,
        *epilogue,
        list(asked.wanted),
    )


def _backward_flops(grad_output: Sequence[int], input: Any, weight: Sequence[int], *rest: Any, **named: Any) -> int:
    """Two per multiply-accumulate and gradient that is wanted; gaps of the flat storage count as weights."""
    batch, _, out_h, out_w = grad_output
    wanted = Wanted(*rest[-1])
    return 2 * batch * out_h * out_w * weight[0] * (wanted.input + wanted.weight)


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
    flops=_backward_flops,
)
