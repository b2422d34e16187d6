"""The operator `grouped_conv::conv2d_backward`: every gradient of a convolution that is wanted, by kernels or ATen.

It stands below autograd. What is differentiated twice goes through torch's operations instead (`gradients.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from grouped_conv.by_torch.gradients import Saved
from grouped_conv.call_values.request import Request
from grouped_conv.ops.conv2d import fused_request, library
from grouped_conv.planning import backward
from grouped_conv.planning.backward import BackwardOperands

library.define(
    "conv2d_backward(Tensor grad_output, Tensor? input, Tensor weight, Tensor? scale, Tensor? known, "
    "SymInt[4] input_size, bool input_channels_last, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, "
    "str activation, float negative_slope, str precision, str backend, int input_shuffle, int output_shuffle, "
    "bool[5] wanted) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale, "
    "Tensor grad_residual)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
conv2d_backward = torch.ops.grouped_conv.conv2d_backward.default


def call(grad: Tensor, saved: Saved, request: Request, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of input, weight, bias, scale and residual; None for what is not needed."""
    wanted = [bool(need) for need in needs]
    passes = request.activation == "none" and request.output_shuffle == 1  # the residual's gradient is the output's
    asked = [*wanted[:4], wanted[4] and not passes]
    found: list[Tensor | None] = [None] * 5
    if any(asked):
        window = request.geometry
        with torch._C._AutoDispatchBelowAutograd():
            results = conv2d_backward(
                grad,
                saved.input,
                saved.weight,
                saved.scale,
                saved.known,
                saved.input_shape,
                saved.input_channels_last,
                window.stride,
                window.padding,
                window.dilation,
                request.activation,
                request.negative_slope,
                request.precision,
                request.backend,
                request.input_shuffle,
                request.output_shuffle,
                asked,
            )
        found = [result if want else None for result, want in zip(results, asked, strict=True)]
    if wanted[4] and passes:
        found[4] = grad
    return found


def _implementation(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    known: Tensor | None,
    input_size: Sequence[int],
    input_channels_last: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    negative_slope: float,
    precision: str,
    backend: str,
    input_shuffle: int,
    output_shuffle: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    attributes = (
        (tuple(stride), tuple(padding), tuple(dilation)),
        activation,
        negative_slope,
        False,
        precision,
        backend,
        input_shuffle,
        output_shuffle,
    )
    saved = Saved(input, weight, scale, known, tuple(input_size), input_channels_last)
    found = backward.run(BackwardOperands(grad_output, saved), attributes, _as_request, tuple(wanted))
    return tuple(grad_output.new_empty(0) if result is None else result for result in found)


def _as_request(window: tuple[Any, Any, Any], *rest: Any) -> Request:
    return fused_request(*window, *rest)


def _fake(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    known: Tensor | None,
    input_size: Sequence[int],
    input_channels_last: bool,
    *rest: Any,
) -> tuple[Tensor, ...]:
    saved = Saved(input, weight, scale, known, tuple(input_size), input_channels_last)
    wanted = rest[-1]
    made = backward.empty_results(grad_output, saved, wanted)
    return tuple(grad_output.new_empty(0) if result is None else result for result in made)


for _key in ("CPU", "CUDA"):
    library.impl("conv2d_backward", _implementation, _key)
torch.library.register_fake("grouped_conv::conv2d_backward", _fake, lib=library)


@register_flop_formula(torch.ops.grouped_conv.conv2d_backward)
def _flops(
    grad_output: Sequence[int], input: Any, weight: Sequence[int], *rest: Any, out_shape: Any = None, **named: Any
) -> int:
    """Two per multiply-accumulate and convolution gradient that is wanted, as torch counts them."""
    batch, _, out_h, out_w = grad_output
    wanted: Sequence[bool] = rest[-1]
    return 2 * batch * out_h * out_w * math.prod(weight) * (wanted[0] + wanted[1])
