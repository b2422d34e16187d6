"""The weights of unequal groups in memory: one 4-D tensor per size bucket, all of them views of one flat storage.

The kernel reads the flat storage, so weights that are views of it need no pass of their own. Each bucket is
`[groups * outputs, R, S, inputs]` there and begins at a multiple of 8 elements; rows are not padded, so that a bucket
stays an ordinary dense tensor. Other weights are copied into such a storage at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from grouped_conv.kernels.ragged.forward_rules import bucket_offsets, weight_elements
from grouped_conv.kernels.values.layout import GroupLayout

Shape4 = tuple[int, int, int, int]


def weight_shapes(layout: GroupLayout, kernel_size: tuple[int, int]) -> tuple[Shape4, ...]:
    """Shape of each bucket's weight: `(groups * outputs, inputs, R, S)`."""
    return tuple((len(b.groups) * b.outputs, b.inputs, *kernel_size) for b in layout.buckets)


def flat_storage(layout: GroupLayout, kernel_size: tuple[int, int], dtype: torch.dtype, device: Any) -> Tensor:
    """A new flat storage, the gaps between buckets zero."""
    return torch.zeros(weight_elements(layout, kernel_size[0] * kernel_size[1]), dtype=dtype, device=device)


def places(layout: GroupLayout, kernel_size: tuple[int, int]) -> tuple[tuple[int, Shape4], ...]:
    """Where each bucket's weight begins in the flat storage, and its strides there, in elements."""
    kernel_h, kernel_w = kernel_size
    begins = bucket_offsets(layout, kernel_h * kernel_w)
    widths = [bucket.inputs for bucket in layout.buckets]
    return tuple((b, (kernel_h * kernel_w * c, 1, kernel_w * c, c)) for b, c in zip(begins, widths, strict=True))


def views(flat: Tensor, layout: GroupLayout, kernel_size: tuple[int, int]) -> list[Tensor]:
    """Each bucket's weight as a channels_last view of the flat storage."""
    shapes = weight_shapes(layout, kernel_size)
    return [
        flat.as_strided(shape, strides, flat.storage_offset() + begin)
        for shape, (begin, strides) in zip(shapes, places(layout, kernel_size), strict=True)
    ]


def are_flat(weights: Sequence[Tensor], layout: GroupLayout) -> bool:
    """Are these tensors placed like the views of one flat storage that is 16-byte aligned?"""
    return lie_at(weights, places(layout, (weights[0].shape[2], weights[0].shape[3])))


def lie_at(weights: Sequence[Tensor], wanted: tuple[tuple[int, Shape4], ...]) -> bool:
    """`are_flat` for places that are known."""
    address, size = weights[0].data_ptr(), weights[0].element_size()
    if address % 16:
        return False
    for weight, (begin, strides) in zip(weights, wanted, strict=True):
        if weight.data_ptr() != address + begin * size:
            return False
        if weight.stride() != strides and any(
            mine != theirs and length != 1
            for mine, theirs, length in zip(weight.stride(), strides, weight.shape, strict=True)
        ):
            return False
    return True


def flat_of(weights: Sequence[Tensor], layout: GroupLayout) -> Tensor:
    """The flat storage that the weights are views of, as one tensor, or a copy of them in a new one."""
    first = weights[0]
    size = weight_elements(layout, first.shape[2] * first.shape[3])
    if type(first) in (Tensor, torch.nn.Parameter) and are_flat(weights, layout):  # others have no address
        room = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
        if room >= size:
            return first.detach().as_strided((size,), (1,), first.storage_offset())
    flat = in_flat_storage(weights, layout)
    return torch.nn.functional.pad(flat, (0, size - flat.numel()))


def in_flat_storage(weights: Sequence[Tensor], layout: GroupLayout) -> Tensor:
    """The weights copied into a new flat storage."""
    pieces: list[Tensor] = []
    end = 0
    first = weights[0]
    taps = first.shape[2] * first.shape[3]
    for begin, weight in zip(bucket_offsets(layout, taps), weights, strict=True):
        if begin > end:
            pieces.append(first.new_zeros(begin - end))
        pieces.append(weight.permute(0, 2, 3, 1).reshape(-1))
        end = begin + weight.numel()
    return torch.cat(pieces)


def make_flat(weights: Sequence[Tensor], layout: GroupLayout) -> None:
    """Move the data of these weights into one flat storage, in place, unless it is already there.

    What cannot be moved (tensors of several dtypes or devices, subclasses, meta tensors) stays as it is.
    """
    first = weights[0]
    data = [weight.data for weight in weights]
    alike = all((w.dtype, w.device, type(w)) == (first.dtype, first.device, Tensor) for w in data)
    if not alike or first.device.type not in ("cpu", "cuda") or are_flat(data, layout):
        return
    kernel_size = (first.shape[2], first.shape[3])
    flat = flat_storage(layout, kernel_size, first.dtype, first.device)
    for weight, view in zip(weights, views(flat, layout, kernel_size), strict=True):
        view.copy_(weight.data)
        weight.data = view


class _CastFlat(torch.autograd.Function):
    """All weights in another dtype by one cast of their flat storage."""

    @staticmethod
    def forward(ctx: Any, layout: GroupLayout, dtype: torch.dtype, *weights: Tensor) -> Any:
        first = weights[0]
        ctx.dtype = first.dtype
        kernel_size = (first.shape[2], first.shape[3])
        flat = first.new_empty(0).set_(
            first.untyped_storage(),
            first.storage_offset(),
            (weight_elements(layout, kernel_size[0] * kernel_size[1]),),
            (1,),
        )
        return tuple(views(flat.to(dtype), layout, kernel_size))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return (None, None, *(None if grad is None else grad.to(ctx.dtype) for grad in grads))


# first weight -> (all weights, their versions, dtype of the casts, the casts), which live as long as someone holds them
_casts = WeakTensorKeyDictionary()


def cast_weights(weights: Sequence[Tensor], dtype: torch.dtype, layout: GroupLayout) -> list[Tensor]:
    """The weights in `dtype`, by one pass over their flat storage if they have one.

    Leaves that record gradients share one cast for as long as it is needed, as in autocast's own cache.
    """
    if not _is_one_storage(weights, layout):
        return [weight.to(dtype) for weight in weights]
    if not (torch.is_grad_enabled() and torch.is_autocast_cache_enabled() and _are_leaves(weights)):
        return list(_CastFlat.apply(layout, dtype, *weights))
    known = _casts.get(weights[0])
    versions = [weight._version for weight in weights]
    if known is not None and known[1:3] == (versions, dtype):
        casts = [reference() for reference in known[3]]
        same = all(reference() is weight for reference, weight in zip(known[0], weights, strict=True))
        if same and all(cast is not None for cast in casts):
            return casts
    casts = list(_CastFlat.apply(layout, dtype, *weights))
    references = [TensorWeakRef(weight) for weight in weights]
    _casts[weights[0]] = (references, versions, dtype, [TensorWeakRef(cast) for cast in casts])
    return casts


def _are_leaves(weights: Sequence[Tensor]) -> bool:
    return all(w.requires_grad and w.is_leaf and w.dtype == torch.float32 and not w._is_view() for w in weights)


def _is_one_storage(weights: Sequence[Tensor], layout: GroupLayout) -> bool:
    """May the weights be cast together?"""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or weights[0].device.type not in ("cpu", "cuda"):
        return False
    if any(type(weight.data) is not Tensor or weight.dtype != weights[0].dtype for weight in weights):
        return False
    storage = weights[0].untyped_storage()
    if any(weight.untyped_storage().data_ptr() != storage.data_ptr() for weight in weights):
        return False
    taps = weights[0].shape[2] * weights[0].shape[3]
    room = weights[0].storage_offset() + weight_elements(layout, taps)
    return are_flat(weights, layout) and room * weights[0].element_size() <= storage.nbytes()
