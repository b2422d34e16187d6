"""`lrn_max_pool2d`: local response normalisation and max-pooling, with or without a ReLU, as one call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from grouped_conv.autograd.lrn_pool import lrn_max_pool
from grouped_conv.by_torch.lrn_pool import LrnPoolRequest, checked, lrn_pool_by_torch
from grouped_conv.functional.conv2d import DEVICES, IntOrPair, as_tuple, check_names, record_torchs
from grouped_conv.kernels.lrn_pool.problem import LRN_POOL
from grouped_conv.kernels.values.problem import pair


def lrn_max_pool2d(
    input: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    kernel_size: IntOrPair = 3,
    stride: IntOrPair | None = 2,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    *,
    groups: int = 1,
    order: str = LRN_POOL,
    backend: str | None = None,
) -> Tensor:
    """`max_pool2d(local_response_norm(input))`, or the steps in another order, in one pass over memory by our kernel.

    The kernel takes channels_last float16, bfloat16 and float32 on a GPU and inside `interpret()`; elsewhere torch's
    operations run. It rounds to the input's dtype once, at the end. Backward repeats the steps with torch's operations.
    Autocast changes nothing: the output has the input's dtype.

    Args:
        input: `(N, C, H, W)` or `(C, H, W)`; the output has its memory format.
        size, alpha, beta, k: of `torch.nn.LocalResponseNorm`, which divides alpha by size; AlexNet's paper does not.
        kernel_size, stride, padding, ceil_mode: of `torch.nn.MaxPool2d`, with stride 2 by default; `stride=None` is the
            kernel's size. Padding never wins.
        groups: towers that are normalised separately; divides C.
        order: the steps in the order they run, each at most once, of `relu`, `lrn` and `pool`, joined by dashes:
            `lrn-pool`, `relu-lrn-pool`, `lrn-relu-pool`, `pool-lrn`, ...
        backend: `"aten"` or `"kernel"` forces torch's operations or our kernel; by default the policy decides.

    Raises:
        ValueError: for arguments that describe no valid layer, naming what is accepted.
        RuntimeError: when `backend="kernel"` or policy `kernels` requires a kernel that cannot run.
    """
    check_names(None, None, backend)
    if input.dim() not in (3, 4):
        raise ValueError(f"expected an input (N, C, H, W) or (C, H, W), but got {tuple(input.shape)}")
    choices = size, alpha, beta, k, groups, order, ceil_mode, backend
    request = make_request(kernel_size, kernel_size if stride is None else stride, padding, choices)
    output = _compute(input.unsqueeze(0) if input.dim() == 3 else input, request)
    return output.squeeze(0) if input.dim() == 3 else output


def _new_request(kernel_size: Any, stride: Any, padding: Any, choices: tuple[Any, ...]) -> LrnPoolRequest:
    size, alpha, beta, k, groups, order, ceil_mode, backend = choices
    window = pair(kernel_size, "kernel_size"), pair(stride, "stride"), pair(padding, "padding")
    scalars = float(alpha), float(beta), float(k)
    return LrnPoolRequest(order, size, *scalars, groups, *window, bool(ceil_mode), backend or "auto")


@lru_cache(maxsize=1024)
def _checked_request(*attributes: Any) -> LrnPoolRequest:
    return checked(_new_request(*attributes))


def make_request(kernel_size: Any, stride: Any, padding: Any, choices: tuple[Any, ...]) -> LrnPoolRequest:
    """The call as a value, checked; the operator checks it again where the compiler traces.

    Args:
        choices: size, alpha, beta, k, groups, order, ceil_mode and backend.

    Raises:
        ValueError: for arguments that describe no valid layer, naming what is accepted.
    """
    window = as_tuple(kernel_size), as_tuple(stride), as_tuple(padding)
    return (_new_request if torch.compiler.is_compiling() else _checked_request)(*window, choices)


def _compute(input: Tensor, request: LrnPoolRequest) -> Tensor:
    reason = _why_not_ours(input)
    if not reason:
        return lrn_max_pool(input, request)
    record_torchs(request.backend, reason)
    return lrn_pool_by_torch(input, request)


def _why_not_ours(input: Tensor) -> str:
    """Why the operator does not take this input; empty when it does."""
    if input.device.type not in DEVICES:
        return f"device {input.device.type} has no kernels"
    if input.layout != torch.strided:
        return f"an input of layout {input.layout} is computed by torch"
    if torch._C._are_functorch_transforms_active():
        return "torch.func's transforms run on torch's operations"
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return "forward-mode derivatives run on torch's operations"
    return ""
