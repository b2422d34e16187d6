"""Counts the bytes that interpreted kernels move: every address of every load and store, per buffer and program.

`with counting() as launches` collects one `LaunchTraffic` for each launch that the interpreter runs in the block. An
access outside the launch's buffers is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from triton.runtime.interpreter import InterpreterBuilder

from grouped_conv.kernels.interpreting import interpreter
from grouped_conv.kernels.launching.launch import Launch

SECTOR = 32
"""Bytes that a GPU's cache moves at least."""
READ, WRITE = "read", "write"

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Access:
    """What one program reads from, or writes to, one buffer.

    Attributes:
        buffer: its name in the launch.
        kind: `READ` or `WRITE`.
        requested: bytes of all lanes that are not masked, however often they name the same address.
        offsets: the distinct elements, ascending, counted from the buffer's first.
        item_size: bytes of an element.
        address: of the buffer.
    """

    buffer: str
    kind: str
    requested: int
    offsets: Offsets
    item_size: int
    address: int

    @property
    def distinct(self) -> int:
        """Bytes of the distinct elements: what must move when the program keeps or caches what it has read."""
        return len(self.offsets) * self.item_size

    @property
    def sectors(self) -> int:
        """Bytes of the distinct 32-byte sectors with at least one of these elements."""
        sectors = (self.address + self.offsets * self.item_size) // SECTOR
        return SECTOR * int(np.count_nonzero(np.diff(sectors, prepend=-1)))


@dataclass(frozen=True)
class LaunchTraffic:
    """The accesses of one launch.

    Attributes:
        launch: what ran.
        tensors: its buffers by name, as they were given.
        programs: the accesses of each program, in the order they ran; reads first, then by buffer.
    """

    launch: Launch
    tensors: Mapping[str, Any]
    programs: tuple[tuple[Access, ...], ...]

    def accesses(self, kind: str | None = None, buffer: str | None = None) -> list[Access]:
        """Those of `kind` and `buffer`, of all programs; all kinds and buffers by default."""
        return [
            access
            for program in self.programs
            for access in program
            if kind in (None, access.kind) and buffer in (None, access.buffer)
        ]

    def requested(self, kind: str | None = None, buffer: str | None = None) -> int:
        """Bytes that all lanes ask for."""
        return sum(access.requested for access in self.accesses(kind, buffer))

    def moved(self, kind: str | None = None, buffer: str | None = None) -> int:
        """Distinct bytes of each program, summed: the launch's traffic if nothing but a program's own re-reads hit."""
        return sum(access.distinct for access in self.accesses(kind, buffer))

    def sectors(self, kind: str | None = None, buffer: str | None = None) -> int:
        """Bytes of the distinct sectors of each program, summed."""
        return sum(access.sectors for access in self.accesses(kind, buffer))

    def distinct(self, kind: str | None = None, buffer: str | None = None) -> int:
        """Distinct bytes of the whole launch, reads and writes counted apart."""
        offsets: dict[tuple[str, str, int], list[Offsets]] = {}
        for access in self.accesses(kind, buffer):
            offsets.setdefault((access.kind, access.buffer, access.item_size), []).append(access.offsets)
        return sum(size * len(np.unique(np.concatenate(parts))) for (_, _, size), parts in offsets.items())


@contextmanager
def counting() -> Iterator[list[LaunchTraffic]]:
    """Count every launch that is interpreted in the block; blocks do not nest.

    Keeps each program's addresses, so it is for small launches: 8 bytes for each element that each program touches.

    Raises:
        RuntimeError: inside another `counting()`; and from the launch, when a kernel leaves its buffers.
    """
    launches: list[LaunchTraffic] = []

    @contextmanager
    def watch(launch: Launch, tensors: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
        recorder = _Recorder(launch, tensors)
        with recorder.installed():
            yield recorder.end_program
        launches.append(LaunchTraffic(launch, tensors, tuple(recorder.programs)))

    if interpreter.watcher is not None:
        raise RuntimeError("counting() does not nest")
    interpreter.watcher = watch
    try:
        yield launches
    finally:
        interpreter.watcher = None


@dataclass(slots=True)
class _Tally:
    """Accesses of the program that runs now."""

    requested: int = 0
    addresses: list[npt.NDArray[np.uint64]] = field(default_factory=list)


class _Recorder:
    """Stands between the interpreter and memory during one launch."""

    def __init__(self, launch: Launch, tensors: Mapping[str, Any]) -> None:
        placed = {buffer.name: tensors[buffer.name] for buffer in launch.buffers}
        ranges = sorted(
            (tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), tensor.element_size(), name)
            for name, tensor in placed.items()
        )
        self.ranges: Sequence[tuple[int, int, int, str]] = ranges
        self.starts = np.array([start for start, _, _, _ in ranges], np.uint64)
        self.tallies: dict[tuple[int, str], _Tally] = {}
        self.programs: list[tuple[Access, ...]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Triton's masked load and store, through which all others go, record before they act."""
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def recorded_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self.record(READ, pointers, mask)
            return load(builder, pointers, mask, *rest)

        def recorded_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.record(WRITE, pointers, mask)
            return store(builder, pointers, value, mask, *rest)

        InterpreterBuilder.create_masked_load = recorded_load
        InterpreterBuilder.create_masked_store = recorded_store
        try:
            yield
        finally:
            InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store

    def record(self, kind: str, pointers: Any, mask: Any) -> None:
        """Note the addresses of the active lanes."""
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        if not addresses.size:
            return
        low, high = addresses.min(), addresses.max()
        index = int(np.searchsorted(self.starts, low, side="right")) - 1
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if index < 0 or int(high) + size > self.ranges[index][1] or size != self.ranges[index][2]:
            raise IndexError(
                f"a {kind} of {size}-byte elements at {low:#x}..{high:#x} is not inside one buffer: {self}"
            )
        tally = self.tallies.setdefault((index, kind), _Tally())
        tally.requested += addresses.size * size
        tally.addresses.append(addresses)

    def end_program(self) -> None:
        """Close the account of one program."""
        accesses = []
        for (index, kind), tally in self.tallies.items():
            start, _, size, name = self.ranges[index]
            distinct = np.unique(np.concatenate(tally.addresses))
            offsets = (distinct - np.uint64(start)).astype(np.int64) // size
            accesses.append(Access(name, kind, tally.requested, offsets, size, start))
        self.programs.append(tuple(sorted(accesses, key=lambda access: (access.kind, access.buffer))))
        self.tallies.clear()

    def __str__(self) -> str:
        return ", ".join(f"{name} {start:#x}..{end:#x}" for start, end, _, name in self.ranges)


def _extent(tensor: Any) -> int:
    """Bytes from the first to the last element of a tensor, the last included."""
    if not tensor.numel():
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int((1 + reach) * tensor.element_size())
