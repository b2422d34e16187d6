"""Reads NVIDIA machine code: registers and stack from `cuobjdump -res-usage`, instructions from `cuobjdump -sass`.

The tool ships inside the Triton wheel; no GPU and no CUDA toolkit is needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from grouped_conv.autotune.machine_code.instructions import Instruction

_LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_MMA = ("HMMA", "HGMMA", "IMMA", "QGMMA", "OMMA", "UTCHMMA", "UTCQMMA")
_SYNC = ("BAR", "DEPBAR", "LDGDEPBAR", "SYNCS", "WARPSYNC", "UTCBAR", "UTMACMDFLUSH", "WARPGROUP", "MEMBAR", "FENCE")
_KIND = {
    "LDG": "global_load",
    "LDGSTS": "global_load",
    "UTMALDG": "global_load",
    "UBLKCP": "global_load",
    "STG": "global_store",
    "UTMASTG": "global_store",
    "LDS": "shared_load",
    "LDSM": "shared_load",
    "STS": "shared_store",
    "STSM": "shared_store",
    "LDL": "spill",
    "STL": "spill",
}


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) per thread of the one kernel in `cubin`; the stack holds spilled values."""
    found = _USAGE.search(_cuobjdump("-res-usage", cubin))
    if found is None:
        raise RuntimeError("cuobjdump reported no resource usage; its output format has changed")
    return int(found[1]), int(found[2])


def disassemble(cubin: bytes) -> list[Instruction]:
    """The instructions of the one kernel in `cubin`, without the padding after its last exit."""
    return parse(_cuobjdump("-sass", cubin))


def parse(text: str) -> list[Instruction]:
    """Instructions of a `cuobjdump -sass` listing."""
    code = [
        _instruction(int(found[1], 16), found[2], found[3]) for found in map(_LINE.match, text.splitlines()) if found
    ]
    while code and (code[-1].opcode == "NOP" or code[-1].target == code[-1].address):
        code.pop()
    return code


def _instruction(address: int, opcode: str, operands: str) -> Instruction:
    words = opcode.split(".")
    name = words[0]
    if name in ("BRA", "BRX", "JMP"):
        found = _TARGET.search(operands)
        return Instruction(address, opcode, "branch", 0, int(found[1], 16) if found else None)
    kind = "mma" if name in _MMA else "sync" if name in _SYNC else _KIND.get(name, "other")
    return Instruction(address, opcode, kind, _width(name, words) if kind in ("global_load", "global_store") else 0)


def _width(name: str, words: list[str]) -> int:
    if name.startswith("U"):
        return 16
    if any(word in ("U8", "S8") for word in words):
        return 1
    if any(word in ("U16", "S16") for word in words):
        return 2
    return max((int(word) // 8 for word in words if word in ("64", "128", "256")), default=4)


def _cuobjdump(flag: str, cubin: bytes) -> str:
    import triton

    with tempfile.TemporaryDirectory(prefix="grouped-conv-") as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        done = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, flag, file], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"cuobjdump {flag} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
