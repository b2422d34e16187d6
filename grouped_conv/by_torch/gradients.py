"""A convolution, its epilogue and its derivatives in torch's operations; `planning.backward` has them by our kernels.

The convolution's own gradients come from ATen's `convolution_backward`, which is itself differentiable. So second
derivatives need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.request import Gradients, Operands, Request, Wanted
from grouped_conv.kernels.values.epilogue import FROM_OUTPUT

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


class Saved(NamedTuple):
    """What a convolution keeps for its gradients, and no more.

    Attributes:
        input: kept where the weight or the scale need a gradient.
        weight: a Parameter as a rule, which is alive anyway.
        scale: `(K,)`.
        known: what the activation's derivative is read from: its output for relu, relu6, leaky_relu, sigmoid and tanh,
            its argument for silu, gelu, hardswish and a leaky_relu of negative slope, nothing without an activation.
        input_shape: `(N, C, H, W)`.
        input_channels_last: the input's memory format, which its gradient has too.
    """

    input: Tensor | None
    weight: Tensor
    scale: Tensor | None
    known: Tensor | None
    input_shape: tuple[int, ...]
    input_channels_last: bool

    @classmethod
    def of(
        cls, operands: Operands, request: Request, output: Tensor, preactivation: Tensor | None, keeps_input: bool
    ) -> Saved:
        """What to keep of a call and its results."""
        input, known = operands.input, known_of(request, output, preactivation)
        last = is_channels_last(input.shape, input.stride())
        return cls(input if keeps_input else None, operands.weight, operands.scale, known, tuple(input.shape), last)

    def some_input(self, device: torch.device | str | None = None) -> Tensor:
        """The input, or a tensor of its shape and format with any values where only its own gradient is wanted.

        Args:
            device: where to make it; by default where the weight is.
        """
        if self.input is not None:
            return self.input
        layout = torch.channels_last if self.input_channels_last else torch.contiguous_format
        place = self.weight.device if device is None else device
        return torch.empty(self.input_shape, dtype=self.weight.dtype, device=place, memory_format=layout)


def float32_flag() -> str:
    """What torch's flag says of float32 convolutions: `tf32`, `ieee` or `none`. (The older `allow_tf32` can raise.)"""
    return str(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def needs_preactivation(activation: str, negative_slope: float) -> bool:
    """Must the activation's argument be kept for its derivative? A falling leaky_relu hides its argument's sign."""
    return activation not in FROM_OUTPUT or (activation == "leaky_relu" and negative_slope < 0)


def known_of(request: Request, output: Tensor, preactivation: Tensor | None) -> Tensor | None:
    """What the activation's derivative is read from (see `Saved`)."""
    if request.activation == "none":
        return None
    return preactivation if needs_preactivation(request.activation, request.negative_slope) else output


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
    """The convolution, with its bias if there is no scale, by `torch.nn.functional.conv2d` with all its checks."""
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
        return torch.channel_shuffle(value, groups)  # the same in one copy, but without every kind of derivative
    return value.unflatten(axis, (groups, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)


def unshuffle_channels(value: Tensor, groups: int) -> Tensor:
    """The inverse of `shuffle_channels(., groups)`."""
    return value if groups == 1 else shuffle_channels(value, value.shape[1] // groups)


def compose(value: Tensor, operands: AfterConvolution, request: Request) -> tuple[Tensor, Tensor]:
    """The epilogue of a convolution `value` in torch's operations: the output, and the activation's argument.

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


def convolution_gradients(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, wanted: Wanted) -> Gradients:
    """Gradients of input, weight and bias of `aten_convolution`, as far as they are wanted."""
    asked = [wanted.input, wanted.weight, wanted.bias]
    if not any(asked):
        return Gradients()
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
        asked,
    )
    if wanted.input and uneven:
        grad_input = grad_input[:, :, top : padded.shape[2] - bottom, left : padded.shape[3] - right]
    return Gradients(grad_input, grad_weight, grad_bias)


def vector_jacobian(
    saved: Saved, request: Request, grad: Tensor | None, grad_preactivation: Tensor | None, needs: Wanted
) -> Gradients:
    """Gradients of the five operands in torch's operations, from those of the output and of the saved preactivation."""
    weight, scale = saved.weight, saved.scale
    grad = gradient_of_sum(saved, request, grad, grad_preactivation)
    if grad is None:
        return Gradients()
    inner = grad if scale is None else grad * per_channel(scale)
    input = shuffle_channels(saved.some_input(), request.input_shuffle)
    found = convolution_gradients(
        inner, input, weight, request.geometry, needs._replace(bias=needs.bias and scale is None)
    )
    grad_input = None if found.input is None else unshuffle_channels(found.input, request.input_shuffle)
    grad_bias, grad_scale = found.bias, None
    if scale is not None:
        grad_bias = sum_per_channel(grad) if needs.bias else None
        if needs.scale:
            unscaled = aten_convolution(input, weight, None, request.geometry)
            grad_scale = sum_per_channel(grad * unscaled)
    return Gradients(grad_input, found.weight, grad_bias, grad_scale, grad if needs.residual else None)


def gradient_of_sum(
    saved: Saved, request: Request, grad: Tensor | None, grad_preactivation: Tensor | None
) -> Tensor | None:
    """The gradient of the activation's argument, from those of the output and of the saved preactivation."""
    if grad is not None:
        grad = through_activation(request, unshuffle_channels(grad, request.output_shuffle), saved.known)
    if grad_preactivation is not None and request.save_preactivation:
        grad = grad_preactivation if grad is None else grad + grad_preactivation
    return grad


def through_activation(request: Request, grad: Tensor, known: Tensor | None) -> Tensor:
    """`grad` through the activation; a saved output is shuffled, the gradient and a saved argument are not."""
    if known is None:
        return grad
    if not needs_preactivation(request.activation, request.negative_slope):
        known = unshuffle_channels(known, request.output_shuffle)
    return activation_gradient(request.activation, request.negative_slope, grad, known, known)


def per_channel(vector: Tensor) -> Tensor:
    """A `(K,)` vector, shaped to meet `(N, K, H, W)`."""
    return vector.view(1, -1, 1, 1)


def sum_per_channel(value: Tensor) -> Tensor:
    """`(N, K, H, W)` summed to `(K,)`."""
    return value.sum((0, 2, 3))
