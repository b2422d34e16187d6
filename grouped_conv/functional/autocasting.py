"""Autocast as ATen's own convolution does it: float64 untouched, the context's dtype, weight casts shared.

`torch.library.register_autocast` fixes the dtype when an operator is registered, so the Python front casts instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

AUTOCAST_DEVICES = ("cpu", "cuda")

# float32 leaf -> (its version, dtype of the cast, the cast). The cast lives as long as autograd or a caller holds it:
# ATen keeps its casts to the end of the autocast block, which Python code cannot observe.
_casts = WeakTensorKeyDictionary()


def cast(tensor: Any, device_type: str) -> Any:
    """`tensor` in autocast's dtype, if autocast may touch it: floating point but not float64, on this kind of device.

    None stays None.
    """
    if tensor is None:
        return None
    dtype = torch.get_autocast_dtype(device_type)
    if tensor.dtype == dtype or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    if tensor.device.type != device_type:
        return tensor
    if torch.compiler.is_compiling() or not _may_share(tensor):
        return tensor.to(dtype)
    version, known_dtype, reference = _casts.get(tensor, (None, None, None))
    if version == tensor._version and known_dtype == dtype:
        shared = reference()
        if shared is not None:
            return shared
    shared = tensor.to(dtype)
    _casts[tensor] = (tensor._version, dtype, TensorWeakRef(shared))
    return shared


def _may_share(tensor: Tensor) -> bool:
    """ATen's rule for its own cache, where gradients are recorded: without them nothing keeps a cast alive."""
    return (
        torch.is_grad_enabled()
        and tensor.requires_grad
        and tensor.is_leaf
        and tensor.dtype == torch.float32
        and not tensor._is_view()
        and torch.is_autocast_cache_enabled()
        and not torch._C._are_functorch_transforms_active()
    )
