"""Views of storage that is reserved but hardly touched: address space, not memory."""

import torch
from torch import Tensor

FAR = 2**31 + 64  # elements


def spread(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`values` at other strides, in storage of their full extent."""
    extent = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True)) + 1
    view = torch.empty(extent, dtype=values.dtype).as_strided(values.shape, strides)
    return view.copy_(values)
