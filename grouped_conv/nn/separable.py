"""Layers of two convolutions that run as one where that is better: `SeparableConv2d` and Deep Roots' `RootModule`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from grouped_conv.by_torch.gradients import apply_activation
from grouped_conv.functional.separable import separable_conv2d
from grouped_conv.nn.conv import GroupedConv2d, checked_activation

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Norm = nn.BatchNorm2d | nn.Identity


class ChainedConv2d(nn.Module):
    """A grouped convolution, an activation, a 1x1 convolution, an activation; optionally with BatchNorm.

    The convolutions are `GroupedConv2d` children, so that state_dicts, `convert`, `fold_batchnorm` and hooks see them.
    One call of `separable_conv2d` computes both. The children are called one by one instead if a BatchNorm is between
    them (fold it), if one of them has hooks or was replaced, and under `torch.fx`.
    """

    first_name: ClassVar[str] = ""

    first_activation: str | None
    activation: str | None
    pointwise: GroupedConv2d
    pointwise_norm: Norm

    def _build(
        self,
        first: GroupedConv2d,
        out_channels: int,
        bias: bool,
        first_activation: str | None,
        activation: str | None,
        batch_norm: bool,
    ) -> None:
        kind: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
        self.first_activation = checked_activation(first_activation)
        self.activation = checked_activation(activation)
        middle = first.out_channels
        setattr(self, self.first_name, first)
        setattr(self, f"{self.first_name}_norm", nn.BatchNorm2d(middle, **kind) if batch_norm else nn.Identity())
        self.pointwise = GroupedConv2d(middle, out_channels, 1, bias=bias, **kind)
        self.pointwise_norm = nn.BatchNorm2d(out_channels, **kind) if batch_norm else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` or `(C, H, W)` to `(N, OUT_CHANNELS, OUT_H, OUT_W)` or without N."""
        first: GroupedConv2d = getattr(self, self.first_name)
        norm: nn.Module = getattr(self, f"{self.first_name}_norm")
        if not isinstance(input, Tensor) or not self._may_fuse(first, norm):  # torch.fx traces with what is no tensor
            hidden = apply_activation(self.first_activation or "none", 0.01, norm(first(input)))
            output = self.pointwise_norm(self.pointwise(hidden))
            return apply_activation(self.activation or "none", 0.01, output)
        input, padding = first._padded(input)
        return separable_conv2d(
            input,
            first.weight,
            self.pointwise.weight,
            first.bias,
            self.pointwise.bias,
            first.stride,
            padding,
            first.dilation,
            first.groups,
            activation=self.first_activation,
            pointwise_activation=self.activation,
        )

    def _may_fuse(self, first: nn.Module, norm: nn.Module) -> bool:
        """Is one call the same as calling the children?"""
        second = self.pointwise
        if type(first) is not GroupedConv2d or type(second) is not GroupedConv2d:
            return False
        if any(child.activation or child.input_shuffle > 1 or child.output_shuffle > 1 for child in (first, second)):
            return False
        if (second.kernel_size, second.stride, second.padding, second.groups) != ((1, 1), (1, 1), (0, 0), 1):
            return False
        norms = (norm, self.pointwise_norm)
        if any(type(one) is not nn.Identity for one in norms):
            return False
        return not _global_hooks() and not any(map(_has_hooks, (first, second, *norms)))

    def extra_repr(self) -> str:
        """The activations, where there are any."""
        words = [
            f"{name}={value}"
            for name, value in (
                (f"{self.first_name}_activation", self.first_activation),
                ("activation", self.activation),
            )
            if value is not None
        ]
        return ", ".join(words)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _global_hooks() -> bool:
    """Hooks on every module, as profilers set them: they want to see the children."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class SeparableConv2d(ChainedConv2d):
    """A depthwise convolution and a 1x1 convolution: MobileNet's separable block.

    Its children are `depthwise` and `pointwise`, `depthwise_norm` and `pointwise_norm`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode: as for `torch.nn.Conv2d`;
            the window is the depthwise convolution's, `bias` applies to both.
        multiplier: depthwise filters per input channel.
        depthwise_activation, activation: names of activations between the convolutions and after them, or None.
        batch_norm: put a BatchNorm after each convolution; `fold_batchnorm` folds both.

    Raises:
        ValueError: as `torch.nn.Conv2d`, and for an unknown activation or a multiplier below 1.
    """

    first_name = "depthwise"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        multiplier: int = 1,
        depthwise_activation: str | None = None,
        activation: str | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if multiplier < 1:
            raise ValueError(f"multiplier must be at least 1, but got {multiplier}")
        depthwise = GroupedConv2d(
            in_channels,
            in_channels * multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._build(depthwise, out_channels, bias, depthwise_activation, activation, batch_norm)


class RootModule(ChainedConv2d):
    """Filter groups in the spatial convolution and a 1x1 convolution that mixes them (Deep Roots, arXiv 1605.06489).

    Its children are `grouped` and `pointwise`, `grouped_norm` and `pointwise_norm`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as for
            `torch.nn.Conv2d`; the window and the groups are the spatial convolution's, `bias` applies to both.
        mid_channels: filters of the spatial convolution; as many as `out_channels` by default.
        grouped_activation, activation: names of activations between the convolutions and after them, or None; the
            paper has `relu` in both places.
        batch_norm: put a BatchNorm after each convolution; `fold_batchnorm` folds both.

    Raises:
        ValueError: as `torch.nn.Conv2d`, and for an unknown activation.
    """

    first_name = "grouped"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mid_channels: int | None = None,
        grouped_activation: str | None = None,
        activation: str | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        grouped = GroupedConv2d(
            in_channels,
            mid_channels or out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._build(grouped, out_channels, bias, grouped_activation, activation, batch_norm)
