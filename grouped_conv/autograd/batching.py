"""vmap of a convolution: the batched dimension becomes images where only activations are batched, otherwise groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from grouped_conv.call_values.request import Operands

Unfold = Callable[[Tensor], tuple[Tensor, int]]
"""Gives the batched dimension back: the tensor and where the dimension is."""


def fold_batch(size: int, dims: Sequence[int | None], operands: Operands) -> tuple[Operands, Unfold]:
    """One ordinary call that does the work of `size` calls.

    Args:
        size: length of the batched dimension.
        dims: where each operand has it, None where it has none.
    """
    input, weight, bias, scale, residual = operands
    if dims[1] is None and dims[2] is None and dims[3] is None:
        images = _batched(input, dims[0], size).shape[1]
        residuals = _optional(_into_first, residual, dims[4], size)
        folded = Operands(_into_first(input, dims[0], size), weight, bias, scale, residuals)
        return folded, lambda output: (output.unflatten(0, (size, images)), 0)
    channels = _batched(weight, dims[1], size).shape[1]
    folded = Operands(
        _into_channels(input, dims[0], size),
        _into_first(weight, dims[1], size),
        _optional(_into_first, bias, dims[2], size),
        _optional(_into_first, scale, dims[3], size),
        _optional(_into_channels, residual, dims[4], size),
    )
    return folded, lambda output: (output.unflatten(1, (size, channels)), 1)


def _batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return _batched(tensor, dim, size).flatten(0, 1)  # (B, N, ...) -> (B*N, ...)


def _into_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return _batched(tensor, dim, size).transpose(0, 1).flatten(1, 2)  # (B, N, C, H, W) -> (N, B*C, H, W)


def _optional(
    fold: Callable[[Tensor, int | None, int], Tensor], tensor: Tensor | None, dim: int | None, size: int
) -> Tensor | None:
    return None if tensor is None else fold(tensor, dim, size)
