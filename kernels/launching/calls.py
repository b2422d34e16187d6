"""All launches of one call as one value, with the buffers that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.values.config import KernelConfig


@dataclass(frozen=True, slots=True)
class Temporary:
    """A buffer that the caller allocates for the length of the call: contiguous in this shape, 16-byte aligned."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """The launches of one call, in order, and the buffers they need.

    Attributes:
        tables: integer arrays that the launches read, by buffer name; the same at every call.
    """

    problem: Any
    config: KernelConfig
    launches: tuple[Launch, ...]
    temporaries: tuple[Temporary, ...]
    tables: Mapping[str, np.ndarray] = field(default_factory=dict, hash=False, compare=False)
