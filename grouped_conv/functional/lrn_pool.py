"""`lrn_max_pool2d` and `LrnMaxPool2d`: local response normalisation and max-pooling, with a ReLU, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from grouped_conv.by_torch.lrn_pool import LrnPoolRequest, checked, lrn_pool_by_torch
from grouped_conv.context import tracing
from grouped_conv.context.tracing import CallRecord
from grouped_conv.functional.conv2d import BACKENDS
from grouped_conv.kernels.lrn_pool.problem import LRN_POOL
from grouped_conv.kernels.values.problem import Pair, pair
from grouped_conv.ops import lrn_pool as lrn_pool_ops

IntOrPair = int | Sequence[int]
_DEVICES = ("cpu", "cuda", "meta")


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
    operations run. It rounds to the input's dtype once, at the end. Gradients are torch's, of the steps computed again.
    Autocast changes nothing: the output has the input's dtype.

    Args:
        input: `(N, C, H, W)` or `(C, H, W)`; the output has its memory format.
        size, alpha, beta, k: of `torch.nn.LocalResponseNorm`, which divides alpha by size; AlexNet's paper does not.
        kernel_size, stride, padding, ceil_mode: of `torch.nn.MaxPool2d`, with stride 2 by default; `stride=None` is the
            kernel's size. Padding never wins.
        groups: towers that are normalised apart; divides C.
        order: the steps in the order they run, each at most once, of `relu`, `lrn` and `pool`, joined by dashes:
            `lrn-pool`, `relu-lrn-pool`, `lrn-relu-pool`, `pool-lrn`, ...
        backend: `"aten"` or `"kernel"` to insist on torch's operations or on our kernel; by default the policy decides.

    Raises:
        ValueError: for arguments that describe no such layer, naming what is accepted.
        RuntimeError: when `backend="kernel"` or policy `kernels` insists on a kernel that cannot run.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; accepted: {', '.join(BACKENDS)}, or None")
    if input.dim() not in (3, 4):
        raise ValueError(f"expected an input (N, C, H, W) or (C, H, W), but got {tuple(input.shape)}")
    if stride is None:
        stride = kernel_size
    request = _request(
        (size, float(alpha), float(beta), float(k), groups, order, bool(ceil_mode), backend or "auto"),
        pair(kernel_size, "kernel_size"),
        pair(stride, "stride"),
        pair(padding, "padding"),
    )
    output = _compute(input.unsqueeze(0) if input.dim() == 3 else input, request)
    return output.squeeze(0) if input.dim() == 3 else output


def _make_request(choices: tuple[Any, ...], kernel_size: Pair, stride: Pair, padding: Pair) -> LrnPoolRequest:
    size, alpha, beta, k, groups, order, ceil_mode, backend = choices
    return LrnPoolRequest(order, size, alpha, beta, k, groups, kernel_size, stride, padding, ceil_mode, backend)


@lru_cache(maxsize=1024)
def _checked_request(*attributes: Any) -> LrnPoolRequest:
    return checked(_make_request(*attributes))


def _request(*attributes: Any) -> LrnPoolRequest:
    """The call as a value, checked; the operator checks it again where the compiler traces."""
    return _make_request(*attributes) if torch.compiler.is_compiling() else _checked_request(*attributes)


def _compute(input: Tensor, request: LrnPoolRequest) -> Tensor:
    reason = _why_not_ours(input)
    if not reason:
        return lrn_pool_ops.call(input, request)
    if request.backend == "kernel":
        raise RuntimeError(f"backend='kernel' was asked for, but {reason}")
    if not torch.compiler.is_compiling():
        tracing.record(CallRecord(None, "aten", reason))
    return lrn_pool_by_torch(input, request)


def _why_not_ours(input: Tensor) -> str:
    """Why the operator does not take this input; empty when it does."""
    if input.device.type not in _DEVICES:
        return f"device {input.device.type} has no kernels"
    if input.layout != torch.strided:
        return f"an input of layout {input.layout} is computed by torch"
    if torch._C._are_functorch_transforms_active():
        return "torch.func's transforms run on torch's operations"
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return "forward-mode derivatives run on torch's operations"
    return ""


class LrnMaxPool2d(nn.Module):
    """`lrn_max_pool2d` as a layer, without parameters; arguments as there.

    Raises:
        ValueError: for arguments that describe no such layer.
    """

    def __init__(
        self,
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
    ) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k, self.groups, self.order = size, alpha, beta, k, groups, order
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = self.kernel_size if stride is None else pair(stride, "stride")
        self.padding, self.ceil_mode = pair(padding, "padding"), ceil_mode
        choices = (size, float(alpha), float(beta), float(k), groups, order, bool(ceil_mode), "auto")
        _checked_request(choices, self.kernel_size, self.stride, self.padding)

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` or `(C, H, W)` to the same with pooled maps."""
        return lrn_max_pool2d(
            input,
            self.size,
            self.alpha,
            self.beta,
            self.k,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            groups=self.groups,
            order=self.order,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        names = ("order", "size", "alpha", "beta", "k", "groups", "kernel_size", "stride", "padding", "ceil_mode")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def normalise_and_pool(norm: nn.Module, pool: nn.Module, input: Tensor) -> Tensor:
    """`pool(norm(input))`, as one call where the two layers are plain and nobody listens between them.

    Args:
        norm: fused where it is a `grouped_conv.models.LocalResponseNorm` or `torch.nn.LocalResponseNorm`.
        pool: fused where it is a `torch.nn.MaxPool2d` without dilation that returns no indices.
    """
    if not _fusible(norm, pool):
        return pool(norm(input))
    return lrn_max_pool2d(
        input,
        norm.size,  # type: ignore[arg-type]
        norm.alpha,  # type: ignore[arg-type]
        norm.beta,  # type: ignore[arg-type]
        norm.k,  # type: ignore[arg-type]
        pool.kernel_size,  # type: ignore[arg-type]
        pool.stride,  # type: ignore[arg-type]
        pool.padding,  # type: ignore[arg-type]
        pool.ceil_mode,  # type: ignore[arg-type]
        groups=getattr(norm, "groups", 1),
    )


def _fusible(norm: nn.Module, pool: nn.Module) -> bool:
    from grouped_conv.nn.lrn import LocalResponseNorm

    if type(norm) not in (LocalResponseNorm, nn.LocalResponseNorm) or type(pool) is not nn.MaxPool2d:
        return False
    if pool.return_indices or pair(pool.dilation, "dilation") != (1, 1):
        return False
    return not any(_has_hooks(layer) for layer in (norm, pool))


def _has_hooks(layer: Any) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
