"""Launches prepared to run on buffers in a fixed order, and the strides and alignment of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_conv.call_values import device_tables
from grouped_conv.kernels.launching.calls import Temporary
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.planning.executors import Executor

MAX_ALIGNMENT = 16


class Steps:
    """Launches prepared on one device, in order, over buffers in a fixed order of names.

    Args:
        launches, temporaries, tables: as planned; the tables' buffers follow `names`, then the temporaries'.
        names: the buffers that the caller holds.
        device: of the tensors.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        names: Sequence[str],
        executor: Executor,
        device: torch.device,
        temporaries: Sequence[Temporary] = (),
        tables: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        tables = tables or {}
        self.names = (*names, *tables, *(temporary.name for temporary in temporaries))
        self.tables = tuple(device_tables.keep(np.asarray(array), device) for array in tables.values())
        self.temporaries = tuple((item.shape, getattr(torch, item.dtype)) for item in temporaries)
        self.stream, self.device = executor.stream, -1 if device.index is None else device.index
        with nullcontext() if self.device < 0 else torch.cuda.device(self.device):
            self.steps = tuple(executor.prepare(launch, self.names, self.device) for launch in launches)

    def complete(self, buffers: list[Any], device: torch.device) -> None:
        """Append the tables and freshly allocated temporaries to the caller's buffers."""
        for handle in self.tables:
            buffers.append(device_tables.fetch(handle))
        for shape, kind in self.temporaries:
            buffers.append(torch.empty(shape, dtype=kind, device=device))

    def launch(self, buffers: Sequence[Any]) -> None:
        """Run the launches in order on the current stream of the device, on buffers in the order of `names`."""
        if self.device >= 0 and torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                self._launch(buffers)
        else:
            self._launch(buffers)

    def _launch(self, buffers: Sequence[Any]) -> None:
        stream = self.stream(self.device)
        for step in self.steps:
            step(stream, buffers)


def placed_operands(operands: Any) -> dict[str, Operand]:
    """Strides and alignment of the tensors of a call, a named tuple, by name; absent ones and tuples are left out."""
    return {
        name: operand_of(tensor)
        for name, tensor in zip(operands._fields, operands, strict=True)
        if isinstance(tensor, Tensor)
    }


def gathered_operands(operands: Sequence[Any]) -> tuple[int, ...]:
    """Positions of a call's vectors that must be made contiguous before the launch."""
    return tuple(index for index, tensor in enumerate(operands) if is_strided_vector(tensor))


def is_strided_vector(tensor: Any) -> bool:
    """A bias or scale with gaps: it is copied before the launch, so that the kernels read one element after another."""
    return isinstance(tensor, Tensor) and tensor.dim() == 1 and not tensor.is_contiguous()


def operand_of(tensor: Tensor) -> Operand:
    """Strides and alignment of a tensor of a call; of a vector with gaps, those of the copy that is made of it."""
    if is_strided_vector(tensor):
        return Operand((1, 1, 1, 1), MAX_ALIGNMENT)
    address = tensor.data_ptr()
    alignment = min(MAX_ALIGNMENT, address & -address) if address else MAX_ALIGNMENT
    strides = tensor.stride() if tensor.dim() == 4 else (1, 1, 1, 1)
    return Operand(strides, alignment)  # type: ignore[arg-type]
