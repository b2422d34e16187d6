"""Shapes and memory formats of outputs, by ATen's own rules: one place for the fake and the real implementations.

A channels_last input or weight gives a channels_last output. Everything here also works on symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grouped_conv.call_values.geometry import Geometry


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Does ATen take a 4-D tensor with these strides for channels_last? (`is_channels_last_strides_2d` in c10.)

    Strides alone are ambiguous where dimensions have size 1; then, and for empty tensors, the answer is no.
    """
    if strides[1] == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * (shape[axis] if shape[axis] > 1 else 1)
    return True


def output_format(*tensors: Tensor) -> torch.memory_format:
    """Memory format of the output of a 2-D convolution of these: its input and its weight or weights."""
    for tensor in tensors:
        if is_channels_last(tensor.shape, tensor.stride()):
            return torch.channels_last
    return torch.contiguous_format


def output_shape(input: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int, int, int]:
    """`(N, K, OUT_H, OUT_W)`."""
    stride, dilation = geometry.stride, geometry.dilation
    batch, _, height, width = input.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    top, bottom, left, right = geometry.padding
    out_h = (height + top + bottom - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width + left + right - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    return batch, out_channels, out_h, out_w


def empty_output(input: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised output of `shape`, in the memory format that the input and the weight call for."""
    layout = output_format(input, weight)
    return torch.empty(tuple(shape), dtype=input.dtype, device=input.device, memory_format=layout)
