"""Layers of one convolution: `GroupedConv2d` and `GroupedConv1d`, with an optional activation; `ChannelShuffle`."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_conv.functional.conv1d import grouped_conv1d
from grouped_conv.functional.conv2d import grouped_conv2d
from grouped_conv.kernels.values.epilogue import ACTIVATIONS
from grouped_conv.nn import frozen_weights


class FusedLayer(nn.modules.conv._ConvNd):
    """What our layers add to torch's convolutions: a fused activation, channel shuffles, a packed weight to drop."""

    activation: str | None = None  # on the class: a converted layer has no other
    input_shuffle: int = 1
    output_shuffle: int = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        input_shuffle: int = 1,
        output_shuffle: int = 1,
    ) -> None:
        positional: Any = (
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
        )
        kind: Any = {"device": device, "dtype": dtype}
        super().__init__(*positional, **kind)  # the next class is torch's `Conv1d` or `Conv2d`
        self.activation = checked_activation(activation)
        self.input_shuffle = checked_shuffle("input_shuffle", input_shuffle, self.in_channels)
        self.output_shuffle = checked_shuffle("output_shuffle", output_shuffle, self.out_channels)
        keep_channels_last(self.weight)

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, and the padding left to do; modes other than zeros are done here, as torch's layers do them."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    def extra_repr(self) -> str:
        """torch's, followed by the activation and the shuffles, if any."""
        words = [super().extra_repr()]
        words += [] if self.activation is None else [f"activation={self.activation}"]
        words += [
            f"{name}={getattr(self, name)}" for name in ("input_shuffle", "output_shuffle") if getattr(self, name) > 1
        ]
        return ", ".join(words)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        frozen_weights.forget_packed_weight(self)  # `to`, `half`, `cuda` put new data into the same Parameter
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weight, which is made again."""
        state = dict(super().__getstate__())
        state.pop(frozen_weights.CACHE, None)
        return state


class GroupedConv2d(FusedLayer, nn.Conv2d):
    """A convolution layer with `torch.nn.Conv2d`'s parameters, state_dict, initialisation and padding modes.

    The weight keeps its shape `(K, C / groups, R, S)`. Its memory is channels_last, which the kernels read, and so is
    the output's. A frozen weight (`requires_grad_(False)`) in another memory format is packed once instead of at every
    call, for channels_last inputs. Do not write to such a weight through `weight.data`: the packed copy would be stale.

    Args:
        activation: name of an activation fused after the convolution (`grouped_conv.kernels.ACTIVATIONS`), or None.
        input_shuffle, output_shuffle: groups of a channel shuffle before and after, as in `grouped_conv2d`.

    Raises:
        ValueError: as `torch.nn.Conv2d`, for an unknown activation, and for shuffles that do not divide the channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` or `(C, H, W)` to `(N, K, OUT_H, OUT_W)` or `(K, OUT_H, OUT_W)`."""
        input, padding = self._padded(input)
        weight = self.weight
        if not weight.requires_grad and not torch.compiler.is_compiling():
            weight = frozen_weights.packed(self, input, weight)
        return grouped_conv2d(
            input,
            weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            input_shuffle=self.input_shuffle,
            output_shuffle=self.output_shuffle,
        )


class GroupedConv1d(FusedLayer, nn.Conv1d):
    """A convolution layer with `torch.nn.Conv1d`'s parameters, state_dict, initialisation and padding modes.

    The weight keeps its shape `(K, C / groups, S)`; its memory is `[K, S, C / groups]`, as the kernels read it.

    Args:
        activation: name of an activation fused after the convolution (`grouped_conv.kernels.ACTIVATIONS`), or None.
        input_shuffle, output_shuffle: groups of a channel shuffle before and after, as in `grouped_conv1d`.

    Raises:
        ValueError: as `torch.nn.Conv1d`, for an unknown activation, and for shuffles that do not divide the channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, L)` or `(C, L)` to `(N, K, OUT_L)` or `(K, OUT_L)`."""
        input, padding = self._padded(input)
        return grouped_conv1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            input_shuffle=self.input_shuffle,
            output_shuffle=self.output_shuffle,
        )


class ChannelShuffle(nn.ChannelShuffle):
    """ShuffleNet's channel shuffle (arXiv 1707.01083): channel `i * (C / groups) + j` goes to `j * groups + i`.

    After a `GroupedConv2d`, use that layer's `output_shuffle=groups` instead: it needs no pass of its own.

    Args:
        groups: divides the channels.

    Raises:
        ValueError: when `groups` is below 1.
    """

    def __init__(self, groups: int) -> None:
        if groups < 1:
            raise ValueError(f"groups must be at least 1, but got {groups}")
        super().__init__(groups)


def checked_shuffle(name: str, groups: int, channels: int) -> int:
    """`groups`.

    Raises:
        ValueError: when it does not divide `channels`.
    """
    if groups < 1 or channels % groups:
        raise ValueError(f"{name}={groups} must be at least 1 and divide the {channels} channels")
    return groups


def checked_activation(name: str | None) -> str | None:
    """`name`, with `"none"` as None.

    Raises:
        ValueError: naming the accepted activations.
    """
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; accepted: {', '.join(ACTIVATIONS)}, or None")
    return None if name == "none" else name


def keep_channels_last(parameter: Tensor) -> None:
    """Lay out a weight `(K, C / groups, R, S)` as `[K, R, S, C / groups]` in memory; it stays the same Parameter.

    A 1-D weight `(K, C / groups, S)` becomes `[K, S, C / groups]`.
    """
    if parameter.dim() == 3:
        parameter.data = parameter.data.mT.contiguous().mT
    else:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
