"""The packed copy of a frozen weight that is not channels_last: made once by its layer, not at every call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from grouped_conv.call_values.memory_formats import is_channels_last

CACHE = "_packed_weight"
"""The layer's attribute that holds the copy."""


def forget_packed_weight(module: nn.Module) -> None:
    """Drop the packed copy that a frozen module may hold."""
    vars(module).pop(CACHE, None)


@dataclass(frozen=True, slots=True)
class _PackedWeight:
    """A channels_last copy and the state of the weight it was made from."""

    source: TensorWeakRef
    address: int
    version: int
    copy: Tensor

    def is_of(self, weight: Tensor) -> bool:
        if self.source() is not weight or self.version != weight._version:
            return False
        return self.address == weight.data_ptr() and self.copy.dtype == weight.dtype


def packed(module: nn.Module, input: Tensor, weight: Tensor) -> Tensor:
    """The weight, or its packed copy for a channels_last input, whose output is channels_last in both cases."""
    if torch._C._are_functorch_transforms_active():
        return weight
    if weight.is_contiguous(memory_format=torch.channels_last) or weight.device.type not in ("cpu", "cuda"):
        return weight
    if input.dim() != 4 or not is_channels_last(input.shape, input.stride()):
        return weight
    if weight.is_inference() or _is_traced(weight):  # inference tensors count no versions
        return weight
    known: _PackedWeight | None = vars(module).get(CACHE)
    if known is None or not known.is_of(weight):
        with torch.inference_mode(False):  # the copy may be used in training later, by layers around this one
            copy = weight.detach().contiguous(memory_format=torch.channels_last)
        known = _PackedWeight(TensorWeakRef(weight), weight.data_ptr(), weight._version, copy)
        vars(module)[CACHE] = known
    return known.copy


def _is_traced(tensor: Tensor) -> bool:
    """Would a copy of this tensor belong to a tracer, so that it must not outlive the call?"""
    return bool(torch._C._len_torch_dispatch_stack()) or type(tensor.data) is not Tensor
