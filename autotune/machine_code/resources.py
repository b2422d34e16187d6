"""What compiled code needs and consists of: registers, spills, shared memory, and the mix of its inner loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grouped_conv.autotune.machine_code import gcn, sass
from grouped_conv.autotune.machine_code.instructions import Instruction, Mix, inner_loop

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel


@dataclass(frozen=True, slots=True)
class Resources:
    """Exact figures of one compiled kernel.

    Attributes:
        registers: 32-bit registers per thread (vector registers on AMD).
        spill_bytes: bytes per thread of registers kept in memory.
        shared_bytes: shared memory per program.
        total: the mix of the whole kernel.
        loop: the mix of the innermost loop that holds a tensor-core instruction; `None` without such a loop.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    total: Mix
    loop: Mix | None

    @property
    def outside(self) -> int:
        """Instructions before and after the inner loop, each counted once."""
        return self.total.instructions - (self.loop.instructions if self.loop else 0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        return {
            "registers": self.registers,
            "spill_bytes": self.spill_bytes,
            "shared_bytes": self.shared_bytes,
            "total": self.total.to_json(),
            "loop": self.loop.to_json() if self.loop else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Resources:
        """The inverse of `to_json`."""
        loop = Mix.from_json(data["loop"]) if data["loop"] else None
        return cls(data["registers"], data["spill_bytes"], data["shared_bytes"], Mix.from_json(data["total"]), loop)


def disassembled(kernel: CompiledKernel) -> list[Instruction]:
    """The instructions of a kernel that `triton.compile` returned, for NVIDIA or AMD.

    Raises:
        RuntimeError: when the disassembler fails or its output is not understood.
    """
    if "cubin" in kernel.asm:
        code = sass.disassemble(kernel.asm["cubin"])
    elif "amdgcn" in kernel.asm:
        code = gcn.parse(kernel.asm["amdgcn"])
    else:
        raise RuntimeError(f"a kernel with the stages {', '.join(kernel.asm)} is neither NVIDIA nor AMD code")
    if not code:
        raise RuntimeError("no instruction was recognised in the compiled code; the listing's format has changed")
    return code


def read_resources(kernel: CompiledKernel) -> Resources:
    """The figures of a kernel that `triton.compile` returned, for NVIDIA or AMD.

    Raises:
        RuntimeError: when the disassembler fails or its output is not understood.
    """
    code = disassembled(kernel)
    registers, spilled = sass.usage(kernel.asm["cubin"]) if "cubin" in kernel.asm else gcn.usage(kernel.asm["amdgcn"])
    loop = inner_loop(code)
    return Resources(registers, spilled, int(kernel.metadata.shared), Mix.of(code), Mix.of(loop) if loop else None)
