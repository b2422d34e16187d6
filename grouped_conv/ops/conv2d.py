"""The torch operators `grouped_conv::conv2d` and `grouped_conv::conv2d_fused`: schemas, fake and real implementations.

`groups` is not in the schemas: it is `input.size(1) / weight.size(1)`, so that a shard of a call is itself a call.
Padding is `(top, bottom, left, right)`. The operators stand below autocast, which the Python front handles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.checks import check_operands
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.planning import forward as dispatch

_TENSORS = "Tensor input, Tensor weight, Tensor? bias"
_WINDOW = "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation"
_EPILOGUE = "str activation, float negative_slope, bool save_preactivation"
_CHOICE = "str precision, str backend"
_SHUFFLES = "int input_shuffle=1, int output_shuffle=1"
# Real strides must reach the implementation, because the output's memory format follows from them.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

library = torch.library.Library("grouped_conv", "DEF")
library.define(f"conv2d({_TENSORS}, {_WINDOW}, {_CHOICE}) -> Tensor", tags=_TAGS)
library.define(
    f"conv2d_fused({_TENSORS}, Tensor? scale, Tensor? residual, {_WINDOW}, {_EPILOGUE}, {_CHOICE}, "
    f"{_SHUFFLES})"
    " -> (Tensor output, Tensor preactivation)",
    tags=_TAGS,
)

conv2d = torch.ops.grouped_conv.conv2d.default
conv2d_fused = torch.ops.grouped_conv.conv2d_fused.default


def plain_request(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], precision: str, backend: str
) -> Request:
    """The attributes of a `conv2d` call as one value."""
    return Request(_geometry(stride, padding, dilation), precision=precision, backend=backend)


def fused_request(
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    negative_slope: float,
    save_preactivation: bool,
    precision: str,
    backend: str,
    input_shuffle: int = 1,
    output_shuffle: int = 1,
) -> Request:
    """The attributes of a `conv2d_fused` call as one value."""
    geometry = _geometry(stride, padding, dilation)
    shuffles = input_shuffle, output_shuffle
    return Request(geometry, activation, negative_slope, save_preactivation, precision, backend, *shuffles)


def _geometry(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Geometry:
    return Geometry(tuple(stride), tuple(padding), tuple(dilation))  # type: ignore[arg-type]


def call(operands: Operands, request: Request) -> Tensor | tuple[Tensor, Tensor]:
    """Call the operator that fits: the output alone, or with the preactivation if the request says to save it."""
    input, weight, bias, scale, residual = operands
    window = request.geometry
    if scale is None and residual is None and request.is_plain:
        return conv2d(
            input, weight, bias, window.stride, window.padding, window.dilation, request.precision, request.backend
        )
    output, preactivation = conv2d_fused(
        input,
        weight,
        bias,
        scale,
        residual,
        window.stride,
        window.padding,
        window.dilation,
        request.activation,
        request.negative_slope,
        request.save_preactivation,
        request.precision,
        request.backend,
        request.input_shuffle,
        request.output_shuffle,
    )
    return (output, preactivation) if request.save_preactivation else output


Run = Callable[..., tuple[Tensor, Tensor | None]]
"""`dispatch.run` or its fake counterpart: operands, attributes, and what makes a `Request` of those."""


def _fake_run(
    operands: Operands, attributes: tuple[Any, ...], as_request: Callable[..., Request]
) -> tuple[Tensor, Tensor | None]:
    request = as_request(*attributes)
    output = layouts.empty_output(operands.input, operands.weight, check_operands(operands, request))
    return output, torch.empty_like(output) if request.save_preactivation else None


def _plain(run: Run) -> Callable[..., Tensor]:
    def implementation(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        precision: str,
        backend: str,
    ) -> Tensor:
        attributes = (tuple(stride), tuple(padding), tuple(dilation), precision, backend)
        return run(Operands(input, weight, bias), attributes, plain_request)[0]

    return implementation


def _fused(run: Run) -> Callable[..., tuple[Tensor, Tensor]]:
    def implementation(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        residual: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        attributes = (tuple(stride), tuple(padding), tuple(dilation), *rest)
        output, preactivation = run(Operands(input, weight, bias, scale, residual), attributes, fused_request)
        return output, output.new_empty(0) if preactivation is None else preactivation

    return implementation


for _key in ("CPU", "CUDA"):
    library.impl("conv2d", _plain(dispatch.run), _key)
    library.impl("conv2d_fused", _fused(dispatch.run), _key)
torch.library.register_fake("grouped_conv::conv2d", _plain(_fake_run), lib=library)
torch.library.register_fake("grouped_conv::conv2d_fused", _fused(_fake_run), lib=library)


@register_flop_formula(torch.ops.grouped_conv.conv2d)
def _conv2d_flops(input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return _flops(weight, out_shape)


@register_flop_formula(torch.ops.grouped_conv.conv2d_fused)
def _conv2d_fused_flops(
    input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[Any], **__: Any
) -> int:
    return _flops(weight, out_shape[0])


def _flops(weight: Sequence[int], output: Sequence[int]) -> int:
    """Two per multiply-accumulate, as torch counts a convolution; the epilogue is not counted."""
    _, c_per_group, kernel_h, kernel_w = weight
    batch, out_channels, out_h, out_w = output
    return 2 * batch * out_h * out_w * out_channels * c_per_group * kernel_h * kernel_w
