"""1-D convolutions: `grouped_conv1d` and `GroupedConv1d`. One is a 2-D convolution of height 1, and runs as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_conv.functional.conv2d import grouped_conv2d
from grouped_conv.nn.conv import FusedLayer

IntOrOne = int | Sequence[int]


def grouped_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrOne = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: IntOrOne = 1,
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
    """`activation(scale * conv1d(input, weight) + bias + residual)`; everything else as `grouped_conv2d`.

    The kernels read channels innermost: an input whose memory is `(N, L, C)`, seen as `(N, C, L)`, is read in place and
    gives an output that lies the same way; a contiguous `(N, C, L)` is packed first.

    Args:
        input: `(N, C, L)` or `(C, L)`.
        weight: `(K, C / groups, S)`.
        bias: `(K,)`.
        stride, dilation: an integer, or a sequence of one.
        padding: an integer, a sequence of one, `(left, right)`, `"same"` or `"valid"`.
        residual: the output's shape, `(N, K, OUT_L)` or `(K, OUT_L)`.

    Raises:
        RuntimeError: in ATen's words for operands that make no convolution, as `grouped_conv2d` otherwise.
        ValueError: as `grouped_conv2d`, and for a stride, dilation or padding of the wrong length.
    """
    if input.dim() not in (2, 3) or weight.dim() != 3:
        F.conv1d(input, weight, bias, 1, 0, 1, groups)  # torch's own error
    one = {"stride": _one(stride, "stride"), "dilation": _one(dilation, "dilation")}
    output = grouped_conv2d(
        input.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        stride=(1, one["stride"]),
        padding=_padding(padding),
        dilation=(1, one["dilation"]),
        groups=groups,
        activation=activation,
        residual=None if residual is None else residual.unsqueeze(-2),
        scale=scale,
        precision=precision,
        backend=backend,
        negative_slope=negative_slope,
        input_shuffle=input_shuffle,
        output_shuffle=output_shuffle,
    )
    return output.squeeze(-2)


def _one(value: IntOrOne, name: str) -> int:
    if isinstance(value, int):
        return value
    if len(value) != 1:
        raise ValueError(f"{name} must be an integer or a sequence of one, but got {tuple(value)}")
    return value[0]


def _padding(padding: int | str | Sequence[int]) -> str | tuple[int, int, int, int]:
    """As `grouped_conv2d` takes it: nothing above and below."""
    if isinstance(padding, str):
        return padding
    sides = (padding,) if isinstance(padding, int) else tuple(padding)
    if len(sides) not in (1, 2):
        raise ValueError(f"padding must be an integer, (left, right), 'same' or 'valid', but got {padding!r}")
    return (0, 0, sides[0], sides[-1])


class GroupedConv1d(FusedLayer, nn.Conv1d):
    """A convolution layer with `torch.nn.Conv1d`'s parameters, state_dict, initialisation and padding modes.

    The weight keeps its shape `(K, C / groups, S)`; its memory is `[K, S, C / groups]`, as the kernels read it.

    Args:
        activation: name of an activation fused behind the convolution (`grouped_conv.kernels.ACTIVATIONS`), or None.
        input_shuffle, output_shuffle: groups of a channel shuffle before and after, as in `grouped_conv1d`.

    Raises:
        ValueError: as `torch.nn.Conv1d`, for an unknown activation, and for shuffles that do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._configure(activation, input_shuffle, output_shuffle)

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
