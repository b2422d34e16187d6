"""Small integer arrays on devices, one copy of each content, for ragged kernels and index gathers.

They are made when a call is planned and kept until the process ends, because a CUDA graph may hold their address. Plans
keep handles, never tensors.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

_lock = threading.Lock()
_handles: dict[tuple[Any, ...], int] = {}
_tensors: list[Tensor] = []
_lists: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
_inherited: list[Any] = []


def keep(array: np.ndarray, device: torch.device) -> int:
    """The handle of this array's copy on `device`, which is made if it does not exist."""
    key = (device, array.dtype.str, array.shape, array.tobytes())
    handle = _handles.get(key)
    if handle is not None:
        return handle
    with _lock, torch.inference_mode(False), torch.no_grad():
        if key not in _handles:
            _tensors.append(torch.from_numpy(array.copy()).to(device))
            _handles[key] = len(_tensors) - 1
        return _handles[key]


def fetch(handle: int) -> Tensor:
    """The tensor behind a handle; read-only."""
    return _tensors[handle]


def has_list(channels: tuple[int, ...], device: torch.device) -> bool:
    """Is there a `channel_list` of these already?"""
    return (channels, device) in _lists


def channel_list(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """These channels in int64 on `device`, as `index_select` takes them; read-only."""
    known = _lists.get((channels, device))
    if known is None:
        known = _lists[channels, device] = fetch(keep(np.array(channels, np.int64), device))
    return known


def _after_fork() -> None:
    """A forked child cannot use its parent's device memory: it starts with none, and must not free it either."""
    global _lock, _handles, _tensors, _lists
    _inherited.append((_tensors, _lists))
    _lock, _handles, _tensors, _lists = threading.Lock(), {}, [], {}


os.register_at_fork(after_in_child=_after_fork)
