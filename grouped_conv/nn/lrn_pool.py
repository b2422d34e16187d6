"""Layers of local response normalisation: `LocalResponseNorm` by towers, `LrnMaxPool2d` with max-pooling in one call.

`torch.nn.LocalResponseNorm` slides over all channels: at the border of two groups its window mixes channels that the
network of 2012 kept on different GPUs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from grouped_conv.by_torch.lrn_pool import local_response_norm
from grouped_conv.functional.conv2d import IntOrPair
from grouped_conv.functional.lrn_pool import lrn_max_pool2d, make_request
from grouped_conv.kernels.lrn_pool.problem import LRN_POOL
from grouped_conv.kernels.values.problem import pair


class LocalResponseNorm(nn.LocalResponseNorm):
    """`y = x / (k + alpha / size * sum of x^2 over size neighbouring channels of the same group) ** beta`.

    With `groups=1` this is `torch.nn.LocalResponseNorm`. Input and output are `(N, C, H, W)` in the same memory format.
    16-bit input is squared in float32: 256^2 is already beyond float16.

    Args:
        size: channels in the window, zeros beyond a group's ends; an even window reaches one further down than up.
        alpha: weight of the sum, divided by `size` as in Caffe; AlexNet's paper writes the sum undivided.
        beta: exponent.
        k: added before the power is taken.
        groups: towers that are normalised separately; divides C.

    Raises:
        ValueError: when `size` or `groups` is below 1, or, on a call, when `groups` does not divide C.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, groups: int = 1) -> None:
        if size < 1 or groups < 1:
            raise ValueError(f"size and groups must be at least 1, but got {size} and {groups}")
        super().__init__(size, alpha, beta, k)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)`."""
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        """The arguments, groups only where there are several."""
        return super().extra_repr() + (f", groups={self.groups}" if self.groups > 1 else "")


class LrnMaxPool2d(nn.Module):
    """`lrn_max_pool2d` as a layer without parameters; it takes the same arguments.

    Raises:
        ValueError: for arguments that make no such layer.
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
        make_request(
            self.kernel_size, self.stride, self.padding, (size, alpha, beta, k, groups, order, ceil_mode, None)
        )

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` or `(C, H, W)` to `(N, C, OUT_H, OUT_W)` or `(C, OUT_H, OUT_W)`."""
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
    """`pool(norm(input))`, as one call if the two layers are plain and have no hooks.

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
    if type(norm) not in (LocalResponseNorm, nn.LocalResponseNorm) or type(pool) is not nn.MaxPool2d:
        return False
    if pool.return_indices or pair(pool.dilation, "dilation") != (1, 1):
        return False
    return not any(_has_hooks(layer) for layer in (norm, pool))


def _has_hooks(layer: Any) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
