"""Reads AMD machine code from the assembly text Triton keeps: resources from its metadata, instructions by line."""

from __future__ import annotations

import re

from grouped_conv.autotune.machine_code.instructions import Instruction

_LABEL = re.compile(r"^(\.L\w+):")
_LINE = re.compile(r"^\s+([a-z][a-z0-9_]*)(?:\s+([^;]*))?")
_METADATA = re.compile(
    r"^\s+\.(vgpr_count|sgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)", re.M
)
_DWORDS = re.compile(r"dwordx?(\d)?$|_b(\d+)$")
_BYTES = (("_ubyte", 1), ("_sbyte", 1), ("_byte", 1), ("_ushort", 2), ("_sshort", 2), ("_short", 2))


def usage(assembly: str) -> tuple[int, int]:
    """(vector registers per lane, bytes of scratch memory per lane); scratch holds spilled values."""
    found = {name: int(value) for name, value in _METADATA.findall(assembly)}
    if "vgpr_count" not in found:
        raise RuntimeError("the AMD assembly has no .vgpr_count; its format has changed")
    spilled = 4 * found.get("vgpr_spill_count", 0)
    return found["vgpr_count"], max(spilled, found.get("private_segment_fixed_size", 0))


def parse(assembly: str) -> list[Instruction]:
    """The instructions of the one kernel in `assembly`; addresses are line numbers."""
    lines = assembly.splitlines()
    labels = {found[1]: number for number, line in enumerate(lines) if (found := _LABEL.match(line))}
    code = []
    for number, line in enumerate(lines):
        found = _LINE.match(line)
        if found is None:
            continue
        opcode, operands = found[1], (found[2] or "").strip()
        kind = _kind(opcode)
        width = _width(opcode) if kind in ("global_load", "global_store") else 0
        target = labels.get(operands) if kind == "branch" else None
        code.append(Instruction(number, opcode, kind, width, target))
        if opcode == "s_endpgm" and number > max(labels.values(), default=0):
            break
    return code


def _kind(opcode: str) -> str:
    if opcode.startswith("v_mfma"):
        return "mma"
    if opcode.startswith(("global_load", "buffer_load")):
        return "global_load"
    if opcode.startswith(("global_store", "buffer_store")):
        return "global_store"
    if opcode.startswith(("ds_read", "ds_load")):
        return "shared_load"
    if opcode.startswith(("ds_write", "ds_store")):
        return "shared_store"
    if opcode.startswith("scratch_"):
        return "spill"
    if opcode.startswith(("s_barrier", "s_waitcnt")):
        return "sync"
    return "branch" if opcode.startswith(("s_cbranch", "s_branch")) else "other"


def _width(opcode: str) -> int:
    stem = opcode.removesuffix("_d16_hi").removesuffix("_d16")
    for suffix, size in _BYTES:
        if stem.endswith(suffix):
            return size
    found = _DWORDS.search(stem)
    if found is None:
        return 4
    return int(found[2]) // 8 if found[2] else 4 * int(found[1] or 1)
