"""The operators `grouped_conv::conv2d`, `conv2d_fused` and `conv2d_backward`.

`groups` is not in the schemas: it is `input.size(1) / weight.size(1)`, so that a shard of a call is itself a call.
Padding is `(top, bottom, left, right)`. Autocast is applied before the operators, in `functional`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from grouped_conv.call_values.request import BackwardOperands, BackwardRequest, Gradients, Operands, Request, Wanted
from grouped_conv.ops.operator import Operator, geometry_of, run_eagerly
from grouped_conv.planning.backward import GRADIENTS, empty_results
from grouped_conv.planning.forward import UNIFORM, outputs_of
from grouped_conv.planning.plan_cache import Results

WINDOW = "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation"


def plain_request(stride: Any, padding: Any, dilation: Any, precision: str, backend: str) -> Request:
    """The attributes of a `conv2d` call as one value."""
    return Request(geometry_of(stride, padding, dilation), precision=precision, backend=backend)


def fused_request(stride: Any, padding: Any, dilation: Any, *rest: Any) -> Request:
    """The attributes of a `conv2d_fused` call as one value."""
    return Request(geometry_of(stride, padding, dilation), *rest)


def _plain_flops(input: Any, weight: Sequence[int], *rest: Any, out_shape: Sequence[int], **named: Any) -> int:
    """Two per multiply-accumulate, as torch counts a convolution; the epilogue is not counted."""
    batch, _, out_h, out_w = out_shape
    return 2 * batch * out_h * out_w * math.prod(weight)


def _fused_flops(input: Any, weight: Sequence[int], *rest: Any, out_shape: Sequence[Any], **named: Any) -> int:
    return _plain_flops(input, weight, out_shape=out_shape[0])


PLAIN = Operator(
    "conv2d",
    f"(Tensor input, Tensor weight, Tensor? bias, {WINDOW}, str precision, str backend) -> Tensor",
    UNIFORM,
    operands=Operands,
    request=plain_request,
    attributes=lambda request: (*request.geometry, request.precision, request.backend),
    fake=lambda operands, request: outputs_of(operands, request).empty(operands.input),
    flops=_plain_flops,
)
FUSED = Operator(
    "conv2d_fused",
    f"(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, {WINDOW}, str activation,"
    " float negative_slope, bool save_preactivation, str precision, str backend, int input_shuffle=1,"
    " int output_shuffle=1) -> (Tensor output, Tensor preactivation)",
    UNIFORM,
    operands=Operands,
    request=fused_request,
    attributes=lambda request: (*request.geometry, *request[1:]),
    fake=lambda operands, request: outputs_of(operands, request).empty(operands.input),
    wanted=lambda request: (True, request.save_preactivation),
    flops=_fused_flops,
)


def dispatch(operands: Operands, request: Request) -> Results:
    """The output, and the preactivation if the request says to save it, by the operator that fits."""
    if operands.scale is None and operands.residual is None and request.is_plain:
        return (*PLAIN.dispatch(operands[:3], request), None)  # type: ignore[arg-type]
    return FUSED.dispatch(operands, request)


run = partial(run_eagerly, UNIFORM, dispatch)
"""The same for eager calls, below autograd."""


EPILOGUE = "str activation, float negative_slope, str precision, str backend"
GRADIENT_OPERANDS = "Tensor grad_output, Tensor? input, Tensor weight, Tensor? scale, Tensor? known"
GRADIENT_RESULTS = "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale, Tensor grad_residual)"


def backward_request(input_size: Sequence[int], input_channels_last: bool, *rest: Any) -> BackwardRequest:
    """The attributes of a `conv2d_backward` call as one value."""
    *window, activation, negative_slope, precision, backend = rest[:7]
    choices = activation, negative_slope, False, precision, backend
    *shuffles, wanted = rest[7:]
    request = Request(geometry_of(*window), *choices, *shuffles)
    return BackwardRequest(request, tuple(input_size), input_channels_last, Wanted(*wanted))


def backward_attributes(asked: BackwardRequest) -> tuple[Any, ...]:
    """The attributes of a request, in the schema's order."""
    geometry, activation, negative_slope, _, *choices = asked.request
    last = asked.input_channels_last
    return (asked.input_shape, last, *geometry, activation, negative_slope, *choices, list(asked.wanted))


def fake_gradients(operands: BackwardOperands, asked: BackwardRequest) -> Gradients:
    """The wanted gradients without values."""
    return empty_results(operands, asked, asked.wanted)


def backward_flops(grad_output: Sequence[int], input: Any, weight: Sequence[int], *rest: Any, **named: Any) -> int:
    """Two per multiply-accumulate and convolution gradient that is wanted, as torch counts them.

    In the flat weights of unequal groups, gaps count as weights.
    """
    batch, _, out_h, out_w = grad_output
    wanted = Wanted(*rest[-1])
    return 2 * batch * out_h * out_w * math.prod(weight) * (wanted.input + wanted.weight)


BACKWARD = Operator(
    "conv2d_backward",
    f"({GRADIENT_OPERANDS}, SymInt[4] input_size, bool input_channels_last, {WINDOW}, {EPILOGUE}, int input_shuffle,"
    f" int output_shuffle, bool[5] wanted) -> {GRADIENT_RESULTS}",
    GRADIENTS,
    operands=BackwardOperands,
    request=backward_request,
    attributes=backward_attributes,
    fake=fake_gradients,
    wanted=lambda asked: asked.wanted,
    flops=backward_flops,
)


def gradients(operands: BackwardOperands, asked: BackwardRequest, operator: Operator[Any, Any] = BACKWARD) -> Gradients:
    """The wanted gradients, by this operator; the residual's is the output's where nothing comes between them."""
    request, wanted = asked.request, asked.wanted
    passes = request.activation == "none" and request.output_shuffle == 1
    computed = wanted._replace(residual=wanted.residual and not passes)
    found = Gradients(*operator.run(operands, asked._replace(wanted=computed))) if any(computed) else Gradients()
    return found._replace(residual=operands.grad_output) if wanted.residual and passes else found
