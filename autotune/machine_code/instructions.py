"""Compiled code as classified instructions, and the inner loop in it; shared by the NVIDIA and AMD readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = ("mma", "global_load", "global_store", "shared_load", "shared_store", "spill", "sync", "branch", "other")
"""What an instruction does; `global_load` includes asynchronous copies to shared memory and TMA loads."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: its place in the code, in any unit that grows.
        opcode: the mnemonic with its modifiers.
        kind: one of `KINDS`.
        width: bytes one thread moves, for memory instructions (0 elsewhere; a TMA load counts as 16).
        target: address a branch goes to, or `None`.
    """

    address: int
    opcode: str
    kind: str
    width: int = 0
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """What a stretch of code consists of.

    Attributes:
        instructions: how many there are.
        kinds: how many of each kind.
        load_widths, store_widths: how many global loads and stores of each width, in bytes per thread.
    """

    instructions: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    load_widths: Mapping[int, int] = field(default_factory=dict)
    store_widths: Mapping[int, int] = field(default_factory=dict)

    @property
    def mma(self) -> int:
        """Tensor-core instructions."""
        return self.kinds.get("mma", 0)

    @property
    def per_mma(self) -> float | None:
        """Instructions per tensor-core instruction; `None` where there is none."""
        return self.instructions / self.mma if self.mma else None

    @classmethod
    def of(cls, code: Iterable[Instruction]) -> Mix:
        """Count `code`."""
        listed = list(code)
        kinds = Counter(instruction.kind for instruction in listed)
        loads = Counter(instruction.width for instruction in listed if instruction.kind == "global_load")
        stores = Counter(instruction.width for instruction in listed if instruction.kind == "global_store")
        return cls(len(listed), dict(sorted(kinds.items())), dict(sorted(loads.items())), dict(sorted(stores.items())))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        return {
            "instructions": self.instructions,
            "kinds": dict(self.kinds),
            "load_widths": {str(width): count for width, count in self.load_widths.items()},
            "store_widths": {str(width): count for width, count in self.store_widths.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Mix:
        """The inverse of `to_json`."""
        widths = [
            {int(width): count for width, count in data[name].items()} for name in ("load_widths", "store_widths")
        ]
        return cls(data["instructions"], dict(data["kinds"]), *widths)


def loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """Every loop, in the order of their starts: from a branch's earlier target to the last branch there."""
    ends: dict[int, int] = {}
    for instruction in code:
        if instruction.target is not None and instruction.target < instruction.address:
            ends[instruction.target] = max(ends.get(instruction.target, 0), instruction.address)
    return [[i for i in code if start <= i.address <= ends[start]] for start in sorted(ends)]


def inner_loop(code: Sequence[Instruction]) -> list[Instruction] | None:
    """The shortest loop that holds a tensor-core instruction.

    `None` when no loop holds one (a kernel of one trip, or one whose loop was unrolled completely).
    """
    return min((loop for loop in loops(code) if any(i.kind == "mma" for i in loop)), key=len, default=None)
