"""`grouped_conv2d`: `torch.nn.functional.conv2d` with an epilogue, run by our kernels where they are faster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.autograd.differentiation import convolve
from grouped_conv.by_torch.gradients import torch_call
from grouped_conv.call_values.geometry import parse_geometry
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context import tracing
from grouped_conv.context.tracing import CallRecord
from grouped_conv.functional.autocasting import AUTOCAST_DEVICES, cast
from grouped_conv.kernels.values.epilogue import ACTIVATIONS
from grouped_conv.kernels.values.problem import PRECISIONS

BACKENDS = ("aten", "kernel")
DEVICES = ("cpu", "cuda", "meta")

IntOrPair = int | Sequence[int]


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    scale: Tensor | float | None = None,
    precision: str | None = None,
    backend: str | None = None,
    negative_slope: float = 0.01,
    input_shuffle: int = 1,
    output_shuffle: int = 1,
) -> Tensor:
    """`activation(scale * conv2d(input, weight) + bias + residual)`.

    It works with autograd, autocast, torch.compile, torch.export and torch.func as `torch.nn.functional.conv2d` does,
    and its output has the same memory format. Our kernels compute gradients under the same policies; torch's operations
    compute second derivatives.

    Args:
        input: `(N, C, H, W)` or `(C, H, W)`.
        weight: `(K, C / groups, R, S)`.
        bias: `(K,)`.
        stride, dilation: integer or `(height, width)`.
        padding: integer, `(height, width)`, `(top, bottom, left, right)`, `"same"` or `"valid"`.
        groups: number of equal groups; divides C and K.
        activation: one of `grouped_conv.kernels.ACTIVATIONS`; none by default.
        residual: added before the activation; the output's shape.
        scale: number, 0-d tensor or `(K,)`, multiplied with the convolution; differentiable.
        precision: of the products of float32 operands, `"ieee"` or `"tf32"`; by default what
            `torch.backends.cudnn.conv.fp32_precision` says.
        backend: `"aten"` or `"kernel"` forces one of them; by default the policy decides (`grouped_conv.policy`).
        negative_slope: of `leaky_relu`.
        input_shuffle: groups of a `torch.nn.functional.channel_shuffle` applied to the input first; divides C.
            `C / groups` makes each group read channels that are `groups` apart.
        output_shuffle: groups of a channel shuffle applied to the output last, as in ShuffleNet (arXiv 1707.01083);
            divides K. Bias, scale and residual are in the order before it.

    Raises:
        RuntimeError: with ATen's message for operands that make no convolution; when `backend="kernel"` or policy
            `kernels` requires a kernel that cannot run.
        ValueError: for an unknown activation, precision or backend, naming what is accepted.
    """
    choices = (activation, negative_slope, False, precision, backend, input_shuffle, output_shuffle)
    if not _is_convolution(input, weight, groups):
        check_names(activation, precision, backend)
        _refuse(input, weight, bias, stride, padding, dilation, groups)
    try:
        request = make_request(stride, padding, dilation, weight.shape[2:], *choices)
    except (TypeError, ValueError) as error:
        check_names(activation, precision, backend)
        _refuse(input, weight, bias, stride, padding, dilation, groups, error)
    unbatched = input.dim() == 3
    if unbatched:
        input, residual = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    output = run_request(prepared(input, weight, bias, scale, residual), request)
    return output.squeeze(0) if unbatched else output


def run_request(operands: Operands, request: Request) -> Tensor:
    """One call with prepared operands, by the operators if they take these operands, otherwise by torch."""
    reason = why_not_ours(operands.input, operands.weight)
    if not reason:
        return convolve(operands, request)
    record_torchs(request.backend, reason)
    return torch_call(operands, request)[0]


def check_names(activation: str | None, precision: str | None, backend: str | None) -> None:
    """Refuse names that are not known.

    Raises:
        ValueError: naming what is accepted.
    """
    for name, value, accepted in (
        ("activation", activation, ACTIVATIONS),
        ("precision", precision, PRECISIONS),
        ("backend", backend, BACKENDS),
    ):
        if value is not None and value not in accepted:
            raise ValueError(f"unknown {name} {value!r}; accepted: {', '.join(accepted)}, or None")


def _is_convolution(input: Tensor, weight: Tensor, groups: int) -> bool:
    """Do the shapes agree with `groups`? The operators take the number of groups from the shapes."""
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor) or weight.dim() != 4:
        return False
    if input.dim() not in (3, 4) or not isinstance(groups, int) or groups <= 0:
        return False
    return input.shape[-3] == weight.shape[1] * groups and weight.shape[0] > 0 and weight.shape[0] % groups == 0


def _refuse(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    cause: Exception | None = None,
) -> NoReturn:
    """Raise what torch raises for these arguments, in its words."""
    per_side = isinstance(padding, tuple | list) and (len(padding) > 2 or any(not isinstance(p, int) for p in padding))
    F.conv2d(input, weight, bias, stride, 0 if per_side else padding, dilation, groups)
    if cause is not None:
        raise cause
    raise RuntimeError(
        f"no convolution: input of size {list(input.shape)}, weight of size {list(weight.shape)}, groups={groups}"
    )


def as_tuple(value: Sequence[int] | int | str) -> int | str | tuple[int, ...]:
    """Lists, nested ones too, as tuples, so that a call's arguments can be looked up."""
    if isinstance(value, int | str):
        return value
    items = tuple(value)
    return items if _INTEGERS.issuperset(map(type, items)) else tuple(as_tuple(item) for item in items)  # type: ignore[misc]


_INTEGERS = frozenset({int})


def _new_request(
    stride: Any,
    padding: Any,
    dilation: Any,
    kernel_size: Any,
    activation: str | None,
    negative_slope: float,
    save_preactivation: bool,
    precision: str | None,
    backend: str | None,
    *shuffles: int,
) -> Request:
    check_names(activation, precision, backend)
    geometry = parse_geometry(stride, padding, dilation, (kernel_size[0], kernel_size[1]))
    epilogue = activation or "none", negative_slope, save_preactivation
    return Request(geometry, *epilogue, precision or "default", backend or "auto", *shuffles)


_known_request = lru_cache(maxsize=4096)(_new_request)


def make_request(stride: Any, padding: Any, dilation: Any, kernel_size: Any, *choices: Any) -> Request:
    """What users ask for, as one value; remembered.

    Args:
        kernel_size: `(height, width)`.
        choices: the other fields of `Request` in their order, None for what is not said.

    Raises:
        ValueError: naming what is accepted.
    """
    window = as_tuple(stride), as_tuple(padding), as_tuple(dilation)
    if not torch.compiler.is_compiling():
        with suppress(TypeError):  # symbolic sizes, and what is no argument at all, cannot be looked up
            return _known_request(*window, kernel_size, *choices)
    return _new_request(*window, kernel_size, *choices)


def prepared(
    input: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | float | None, residual: Tensor | None
) -> Operands:
    """The operands as autocast wants them, the scale as a vector."""
    device_type = input.device.type
    if device_type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
        input, weight, bias, residual = (cast(tensor, device_type) for tensor in (input, weight, bias, residual))
    vector = None if scale is None else scale_vector(scale, input, weight.shape[0])
    return Operands(input, weight, bias, vector, residual)


def scale_vector(scale: Tensor | float, input: Tensor, channels: int) -> Tensor:
    """`scale` as a vector of this many channels and the input's dtype."""
    if not isinstance(scale, Tensor):
        return torch.full((channels,), scale, dtype=input.dtype, device=input.device)
    if scale.dim() == 0:
        scale = scale.to(input.device).expand(channels)
    return scale.to(input.dtype).contiguous()


def why_not_ours(input: Tensor, weight: Tensor) -> str:
    """Why the operators do not take these operands at all; empty when they do."""
    if input.dtype.is_complex or weight.dtype.is_complex:
        return "complex numbers are convolved by torch"
    if input.device.type not in DEVICES:
        return f"device {input.device.type} has no kernels"
    if input.layout != torch.strided or weight.layout != torch.strided:
        return f"operands of layout {input.layout} are convolved by torch"
    if weight.shape[1] == 0:
        return "there are no input channels"
    return ""


def record_torchs(backend: str, reason: str) -> None:
    """Let traces show that torch's own operations compute a call outside the operators' reach.

    Raises:
        RuntimeError: where a kernel is insisted on.
    """
    if backend == "kernel":
        raise RuntimeError(f"backend='kernel' was asked for, but {reason}")
    if not torch.compiler.is_compiling():
        tracing.record([CallRecord(None, "aten", reason)])
