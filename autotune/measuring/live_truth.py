"""What torch computes for a problem, forward or gradient, in any dtype: the truth in float64, and PyTorch's own call.

Only the measuring process imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.kernels.launching.gradient_operands import reads_preactivation
from grouped_conv.kernels.ragged.forward_rules import weight_offsets
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

Tensors = Mapping[str, Tensor]

_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def computed(problem: ConvProblem, tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """The problem's result by torch's own operations, all steps in `dtype`; in float64 this is the truth."""
    if problem.direction == "forward":
        return _activated(problem.epilogue, preactivation(problem, tensors, dtype), shuffle=True)
    inner = _behind_activation(problem, tensors, dtype)
    if problem.epilogue.scale:
        inner = inner * tensors["scale"].to(dtype)[:, None, None]
    return _gradient(problem, inner, _read(problem, tensors, dtype), tensors["weight"].to(dtype))


def preactivation(problem: ConvProblem, tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """The activation's argument of a forward pass."""
    x, weight, epilogue = _read(problem, tensors, dtype), tensors["weight"].to(dtype), problem.epilogue
    bias = tensors["bias"].to(dtype) if epilogue.bias else None
    inside = bias if problem.layout.is_uniform and not epilogue.scale else None  # added in torch's own kernel
    geometry = (problem.stride, _padding(problem), problem.dilation)
    parts = [F.conv2d(part.of(x), part.weight, inside, *geometry, part.groups) for part in _parts(problem, weight)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    if epilogue.scale:
        y = y * tensors["scale"].to(dtype)[:, None, None]
    if bias is not None and inside is None:
        y = y + bias[:, None, None]
    return y + tensors["residual"].to(dtype) if epilogue.residual else y


def shuffled(x: Tensor, groups: int) -> Tensor:
    """A channel shuffle: channel `i * run + j` goes to `j * groups + i`."""
    if groups == 1:
        return x
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


def _padding(problem: ConvProblem) -> tuple[int, int]:
    top, bottom, left, right = problem.padding
    return (top, left) if (top, left) == (bottom, right) else (0, 0)


def _read(problem: ConvProblem, tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """The input as the convolution reads it: shuffled, and padded where the sides differ."""
    x = tensors["input"].to(dtype)
    if problem.input_shuffle > 1:
        x = shuffled(x, problem.input_shuffle)
    top, bottom, left, right = problem.padding
    return x if (top, left) == (bottom, right) else F.pad(x, (left, right, top, bottom))


@dataclass(frozen=True, slots=True)
class Part:
    """One convolution of torch's: a whole uniform problem, or one group of unequal ones."""

    weight: Tensor
    groups: int
    channels: list[int] | None = None
    group: int = 0

    def of(self, x: Tensor) -> Tensor:
        """The channels that it reads."""
        return x if self.channels is None else x[:, self.channels]


def _parts(problem: ConvProblem, weight: Tensor) -> Iterator[Part]:
    """The convolutions that torch needs for the problem, in the order of their outputs."""
    if problem.layout.is_uniform:
        yield Part(weight, problem.groups)
        return
    for group in range(problem.groups):
        yield Part(weight_of(problem, weight, group), 1, list(problem.layout.inputs_of(group)), group)


def weight_of(problem: ConvProblem, flat: Tensor, group: int) -> Tensor:
    """A view of one group's filters, `(k, c, R, S)`, in a flat storage."""
    kernel_h, kernel_w = problem.kernel_size
    outputs, inputs = problem.layout.outputs[group], len(problem.layout.inputs_of(group))
    start = weight_offsets(problem.layout, problem.taps)[group]
    rows = flat[start : start + outputs * problem.taps * inputs].view(outputs, kernel_h, kernel_w, inputs)
    return rows.permute(0, 3, 1, 2)


def _gradient(problem: ConvProblem, inner: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of input or weight, given that of the convolution's output."""
    of_input = problem.direction == "input_grad"
    into = torch.zeros_like(x) if of_input else torch.zeros_like(weight)
    geometry = (problem.stride, _padding(problem), problem.dilation, False, (0, 0))
    first = 0
    for part in _parts(problem, weight):
        outputs = part.weight.shape[0]
        found = torch.ops.aten.convolution_backward(
            inner[:, first : first + outputs], part.of(x), part.weight, None, *geometry, part.groups,
            (of_input, not of_input, False),
        )[0 if of_input else 1]  # fmt: skip
        first += outputs
        if part.channels is None:
            into = found
        elif of_input:
            into.index_add_(1, torch.tensor(part.channels, device=x.device), found)
        else:
            weight_of(problem, into, part.group).copy_(found)
    if not of_input:
        return into
    top, bottom, left, right = problem.padding
    if (top, left) != (bottom, right):
        into = into[:, :, top : top + problem.in_size[0], left : left + problem.in_size[1]]
    back = problem.in_channels // problem.input_shuffle if problem.input_shuffle > 1 else 1
    return shuffled(into, back)


def _activated(epilogue: Epilogue, value: Tensor, *, shuffle: bool) -> Tensor:
    if epilogue.activation == "leaky_relu":
        value = F.leaky_relu(value, epilogue.negative_slope)
    else:
        value = _ACTIVATE[epilogue.activation](value)
    return shuffled(value, epilogue.shuffle) if shuffle and epilogue.shuffle > 1 else value


def known(problem: ConvProblem, tensors: Tensors) -> Tensor:
    """What the forward pass kept for the activation's derivative."""
    forward = replace(problem, direction="forward")
    value = preactivation(forward, tensors, torch.float32)
    if reads_preactivation(problem.epilogue):
        return value
    return _activated(problem.epilogue, value, shuffle=True)


def _behind_activation(problem: ConvProblem, tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """The gradient of the activation's argument, in the convolution's order of channels."""
    epilogue = problem.epilogue
    back = problem.out_channels // epilogue.shuffle if epilogue.shuffle > 1 else 1
    grad, kept = shuffled(tensors["grad_output"].to(dtype), back), tensors["known"].to(dtype)
    if epilogue.activation == "none":
        return grad
    if reads_preactivation(epilogue):
        argument = kept.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = _activated(epilogue, argument, shuffle=False)
        return torch.autograd.grad(value, argument, grad)[0]
    kept = shuffled(kept, back)
    if epilogue.activation in ("sigmoid", "tanh"):
        return grad * (kept * (1 - kept) if epilogue.activation == "sigmoid" else 1 - kept * kept)
    passes = kept > 0
    if epilogue.activation == "relu6":
        passes = passes & (kept < 6)
    closed = grad * epilogue.negative_slope if epilogue.activation == "leaky_relu" else torch.zeros_like(grad)
    return torch.where(passes, grad, closed)


def relative_error(y: Tensor, exact: Tensor) -> float:
    """max|y - exact| / max|exact|; infinite where a value was not written."""
    y = y.double()
    if not bool(y.isfinite().all()):
        return float("inf")
    peak = float(exact.abs().max()) if exact.numel() else 0.0
    worst = float((y - exact).abs().max()) if exact.numel() else 0.0
    return worst / peak if peak else worst
