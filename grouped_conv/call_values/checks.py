"""What a call's operands must be, in ATen's words; shared by the fake and the real implementations.

The groups of a call follow from its shapes, so a wrong weight must be refused here or it would change their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grouped_conv.call_values import memory_formats as layouts
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Operands, Request


def check_operands(operands: Operands, request: Request) -> tuple[int, int, int, int]:
    """The output's shape, `(N, K, OUT_H, OUT_W)`.

    Raises:
        RuntimeError: in ATen's words where it has some.
    """
    input, weight, bias, scale, residual = operands
    geometry = request.geometry
    check_geometry(geometry)
    check_dimensions("input", input)
    check_dimensions("weight", weight)
    _check_channels(input, weight)
    for name, tensor in zip(operands._fields, operands, strict=True):
        check_type(name, tensor, input)
    _check_vector("bias", bias, weight)
    _check_vector("scale", scale, weight)
    _check_shuffle("input_shuffle", request.input_shuffle, input.shape[1])
    _check_shuffle("output_shuffle", request.output_shuffle, weight.shape[0])
    check_fits(input, weight, request)
    shape = layouts.output_shape(input, weight, geometry)
    check_residual(residual, shape)
    return shape


def check_geometry(geometry: Geometry) -> None:
    """Refuse strides, dilations and pads that no convolution has."""
    torch._check(min(geometry.padding) >= 0, lambda: "negative padding is not supported")
    torch._check(min(geometry.stride) > 0, lambda: "non-positive stride is not supported")
    torch._check(min(geometry.dilation) > 0, lambda: "non-positive dilation is not supported")


def check_residual(residual: Tensor | None, shape: tuple[int, int, int, int]) -> None:
    """Refuse a residual of another size than the output's."""
    if residual is not None:
        torch._check(
            residual.dim() == 4 and all(a == b for a, b in zip(residual.shape, shape, strict=True)),
            lambda: f"residual must have the output's size {list(shape)}, but got residual of size {_size(residual)}",
        )


def check_dimensions(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that has not four dimensions."""
    torch._check(
        tensor.dim() == 4, lambda: f"Expected 4-dimensional {name} for conv2d, but got {name} of size: {_size(tensor)}"
    )


def _check_channels(input: Tensor, weight: Tensor) -> None:
    channels, per_group = input.shape[1], weight.shape[1]
    torch._check(
        per_group > 0 and channels > 0 and channels % per_group == 0,
        lambda: (
            f"weight of size {_size(weight)} implies groups of {per_group} input channels, but got input of size "
            f"{_size(input)} with {channels} channels"
        ),
    )
    groups = channels // per_group
    torch._check(
        weight.shape[0] > 0 and weight.shape[0] % groups == 0,
        lambda: (
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size [{_size(weight)}] instead"
        ),
    )


def check_type(name: str, tensor: Tensor | None, input: Tensor) -> None:
    """Refuse an operand of another dtype or device than the input's."""
    if tensor is not None:
        torch._check(
            tensor.dtype == input.dtype and tensor.device == input.device,
            lambda: f"Input type ({_kind(input)}) and {name} type ({_kind(tensor)}) should be the same",
        )


def _check_vector(name: str, vector: Tensor | None, weight: Tensor) -> None:
    if vector is not None:
        torch._check(
            vector.dim() == 1 and vector.shape[0] == weight.shape[0],
            lambda: (
                f"Given weight of size {_size(weight)}, expected {name} to be 1-dimensional with {weight.shape[0]} "
                f"elements, but got {name} of size {_size(vector)} instead"
            ),
        )


def _check_shuffle(name: str, groups: int, channels: int) -> None:
    torch._check(
        groups >= 1 and channels % groups == 0,
        lambda: f"{name}={groups} must be at least 1 and divide the {channels} channels",
    )


def check_fits(input: Tensor, weight: Tensor, request: Request) -> None:
    """Refuse a kernel larger than the padded input."""
    top, bottom, left, right = request.geometry.padding
    padded = input.shape[2] + top + bottom, input.shape[3] + left + right
    window = [d * (k - 1) + 1 for d, k in zip(request.geometry.dilation, weight.shape[2:], strict=True)]
    torch._check(
        padded[0] >= window[0] and padded[1] >= window[1],
        lambda: (
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
            f"Kernel size: ({window[0]} x {window[1]}). Kernel size can't be greater than actual input size"
        ),
    )


def _size(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.device.type} {str(tensor.dtype).removeprefix('torch.')}"
