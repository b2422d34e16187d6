"""The tensors of a convolution with unequal groups and their checks, for the fake and the real implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.checks import check_dimensions, check_fits, check_geometry, check_residual, check_type
from grouped_conv.call_values.ragged_weights import weight_shapes
from grouped_conv.call_values.request import Request
from grouped_conv.kernels.values.layout import GroupLayout


class RaggedOperands(NamedTuple):
    """The tensors of `activation(scale * conv(input, weights) + bias + residual)`.

    Attributes:
        input: `(N, C, H, W)`.
        weights: one `(groups * outputs, inputs, R, S)` per size bucket of the layout.
        bias, scale: `(K,)`.
        residual: `(N, K, OUT_H, OUT_W)`.
    """

    input: Tensor
    weights: tuple[Tensor, ...]
    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None


def check_operands(operands: RaggedOperands, layout: GroupLayout, request: Request) -> tuple[int, int, int, int]:
    """The output's shape, `(N, K, OUT_H, OUT_W)`.

    Raises:
        RuntimeError: for operands that make no convolution of this layout, naming the sizes.
    """
    input, weights, bias, scale, residual = operands
    check_geometry(request.geometry)
    check_dimensions("input", input)
    _check_weights(input, weights, layout)
    torch._check(
        input.shape[1] == layout.in_channels,
        lambda: (
            f"Given {layout}, expected input{list(input.shape)} to have {layout.in_channels} channels, "
            f"but got {input.shape[1]} channels instead"
        ),
    )
    _check_vector("bias", bias, input, layout)
    _check_vector("scale", scale, input, layout)
    check_type("residual", residual, input)
    check_fits(input, weights[0], request)
    batch, _, out_h, out_w = layouts.output_shape(input, weights[0], request.geometry)
    shape = (batch, layout.out_channels, out_h, out_w)
    check_residual(residual, shape)
    return shape


def _check_weights(input: Tensor, weights: tuple[Tensor, ...], layout: GroupLayout) -> None:
    torch._check(
        len(weights) == len(layout.buckets),
        lambda: f"{layout} has {len(layout.buckets)} sizes of groups, but got {len(weights)} weights",
    )
    for weight in weights:
        check_dimensions("weight", weight)
    kernel_size = (weights[0].shape[2], weights[0].shape[3])
    for index, (weight, wanted) in enumerate(zip(weights, weight_shapes(layout, kernel_size), strict=True)):
        torch._check(
            all(a == b for a, b in zip(weight.shape, wanted, strict=True)),
            lambda index=index, weight=weight, wanted=wanted: (
                f"weight {index} of {layout} must have size {list(wanted)}, but got {list(weight.shape)}"
            ),
        )
        check_type(f"weight {index}", weight, input)


def _check_vector(name: str, vector: Tensor | None, input: Tensor, layout: GroupLayout) -> None:
    check_type(name, vector, input)
    if vector is not None:
        torch._check(
            vector.dim() == 1 and vector.shape[0] == layout.out_channels,
            lambda: (
                f"expected {name} to be 1-dimensional with {layout.out_channels} elements, "
                f"but got {name} of size {list(vector.shape)}"
            ),
        )
