"""`grouped_conv1d`: a 1-D convolution, which runs as a 2-D convolution of height 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from grouped_conv.functional.conv2d import grouped_conv2d

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
    gives an output in the same format; a contiguous `(N, C, L)` is packed first.

    Args:
        input: `(N, C, L)` or `(C, L)`.
        weight: `(K, C / groups, S)`.
        bias: `(K,)`.
        stride, dilation: an integer, or a sequence of one.
        padding: an integer, a sequence of one, `(left, right)`, `"same"` or `"valid"`.
        residual: the output's shape, `(N, K, OUT_L)` or `(K, OUT_L)`.

    Raises:
        RuntimeError: with ATen's message for operands that make no convolution; otherwise as for `grouped_conv2d`.
        ValueError: as for `grouped_conv2d`, and for a stride, dilation or padding of the wrong length.
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
