"""The derivatives, written once: registered autograd, the eager functions and torch.func all call these.

The convolution's own gradients are ATen's `convolution_backward`, which is itself differentiable, so that second
derivatives need nothing more. Gradients follow torch's precision flags; `precision=` governs the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.geometry import Geometry
from grouped_conv.kernels.epilogue import FROM_OUTPUT
from grouped_conv.request import Operands, Request

aten = torch.ops.aten


class AfterConvolution(Protocol):
    """The operands of an epilogue."""

    @property
    def bias(self) -> Tensor | None:
        """`(K,)`."""

    @property
    def scale(self) -> Tensor | None:
        """`(K,)`."""

    @property
    def residual(self) -> Tensor | None:
        """The output's shape."""


def float32_flag() -> str:
    """What torch's flag says of float32 convolutions: `tf32`, `ieee` or `none`. (The older `allow_tf32` can raise.)"""
    return str(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def needs_preactivation(activation: str, negative_slope: float) -> bool:
    """Must the activation's argument be kept for its derivative? A falling leaky_relu hides its argument's sign."""
    return activation not in FROM_OUTPUT or (activation == "leaky_relu" and negative_slope < 0)


def apply_activation(name: str, negative_slope: float, value: Tensor) -> Tensor:
    """`value` through the activation called `name`; `value` itself for `none`."""
    if name == "none":
        return value
    if name == "leaky_relu":
        return F.leaky_relu(value, negative_slope)
    return _ACTIVATIONS[name](value)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activation_gradient(
    name: str, negative_slope: float, grad: Tensor, output: Tensor, preactivation: Tensor
) -> Tensor:
    """`grad` times the activation's derivative, in operations that can be differentiated again.

    Reads `output` for the activations of `FROM_OUTPUT` and `preactivation` for the others.
    """
    if name == "none":
        return grad
    if name == "leaky_relu":
        known = output if negative_slope >= 0 else preactivation
        return aten.leaky_relu_backward(grad, known, negative_slope, negative_slope >= 0)
    return _ACTIVATION_GRADIENTS[name](grad, output if name in FROM_OUTPUT else preactivation)


def _silu_gradient(grad: Tensor, value: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(grad, value)
    gate = torch.sigmoid(value)  # ATen's silu_backward has no derivative of its own
    return grad * gate * (1 + value * (1 - gate))


_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, output: aten.threshold_backward(grad, output, 0),
    "relu6": lambda grad, output: aten.hardtanh_backward(grad, output, 0, 6),
    "sigmoid": aten.sigmoid_backward,
    "tanh": aten.tanh_backward,
    "silu": _silu_gradient,
    "gelu": aten.gelu_backward,
    "hardswish": aten.hardswish_backward,
}


def aten_convolution(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution by ATen; groups follow from the shapes, uneven padding is added beforehand."""
    groups = input.shape[1] // weight.shape[1]
    if any(geometry.extra_padding):
        input = F.pad(input, geometry.extra_padding)
    padding = geometry.symmetric_padding
    return torch.convolution(  # the same as aten.convolution, and 10 us cheaper to call from Python
        input, weight, bias, geometry.stride, padding, geometry.dilation, False, (0, 0), groups
    )


def torch_convolution(operands: Operands, geometry: Geometry) -> Tensor:
    """The convolution with its bias, if no scale stands between, by `torch.nn.functional.conv2d` and all its checks."""
    input, weight = operands.input, operands.weight
    if any(geometry.extra_padding):
        input = F.pad(input, geometry.extra_padding)
    bias = operands.bias if operands.scale is None else None
    groups = operands.groups if weight.shape[1] else 1
    return F.conv2d(input, weight, bias, geometry.stride, geometry.symmetric_padding, geometry.dilation, groups)


def shuffle_channels(value: Tensor, groups: int, axis: int = 1) -> Tensor:
    """ShuffleNet's channel shuffle (arXiv 1707.01083): channel `i * (C / groups) + j` goes to `j * groups + i`.

    `shuffle_channels(., C // groups)` is its inverse, and its own adjoint.
    """
    if groups == 1:
        return value
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if axis == 1 and value.dim() == 4 and not (torch.is_grad_enabled() or transformed):
        return torch.channel_shuffle(value, groups)  # the same copy at once, but without derivatives of every kind
    return value.unflatten(axis, (groups, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)


def unshuffle_channels(value: Tensor, groups: int) -> Tensor:
    """The inverse of `shuffle_channels(., groups)`."""
    return value if groups == 1 else shuffle_channels(value, value.shape[1] // groups)


def compose(value: Tensor, operands: AfterConvolution, request: Request) -> tuple[Tensor, Tensor]:
    """The epilogue behind a convolution `value` in torch's operations: the output, and the activation's argument.

    `value` already has the bias, unless there is a scale.
    """
    if operands.scale is not None:
        value = value * per_channel(operands.scale)
        value = value if operands.bias is None else value + per_channel(operands.bias)
    value = value if operands.residual is None else value + operands.residual
    output = apply_activation(request.activation, request.negative_slope, value)
    return shuffle_channels(output, request.output_shuffle), value


def torch_call(operands: Operands, request: Request) -> tuple[Tensor, Tensor]:
    """The whole call in torch's operations, with all their checks: the output, and the activation's argument."""
    input = shuffle_channels(operands.input, request.input_shuffle)
    return compose(torch_convolution(operands._replace(input=input), request.geometry), operands, request)


def convolution_gradients(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias of `aten_convolution`; `None` for those not `wanted`."""
    if not any(wanted):
        return None, None, None
    groups = input.shape[1] // weight.shape[1]
    left, right, top, bottom = geometry.extra_padding
    uneven = any(geometry.extra_padding)
    padded = F.pad(input, geometry.extra_padding) if uneven else input
    grad_input, grad_weight, grad_bias = aten.convolution_backward.default(
        grad,
        padded,
        weight,
        [weight.shape[0]],
        geometry.stride,
        geometry.symmetric_padding,
        geometry.dilation,
        False,
        (0, 0),
        groups,
        list(wanted),
    )
    if wanted[0] and uneven:
        grad_input = grad_input[:, :, top : padded.shape[2] - bottom, left : padded.shape[3] - right]
    return grad_input, grad_weight, grad_bias


def per_channel(vector: Tensor) -> Tensor:
    """A `(K,)` vector, shaped to meet `(N, K, H, W)`."""
    return vector.view(1, -1, 1, 1)


def sum_per_channel(value: Tensor) -> Tensor:
    """`(N, K, H, W)` summed to `(K,)`."""
    return value.sum((0, 2, 3))
