"""What every gate on compiled code shares: the architectures, the rules that hold for all kernels, and a line to print.

The figures are counts, so a gate has no tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.kernels.values.device import DeviceSpec

EVERY_RUN = ("sm_80", "sm_90", "gfx942")
SWEEP = ("sm_86", "sm_89", "sm_100", "sm_120")
VECTOR_BYTES = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One compiled kernel and what is wrong with it.

    Attributes:
        arch, family, layer: what was compiled, for which architecture.
        config: with which configuration, in its short form.
        resources: exact figures of the code.
        figure: what the gate counts, per `unit`; `None` where nothing was found to count.
        limit: what `figure` may be at most; `None` where no limit is known.
        unit: what the figure is divided by: a tensor-core instruction, an output value.
        faults: one line per broken rule; empty when the kernel passes.
        note: why a rule does not apply.
    """

    arch: str
    family: str
    layer: str
    config: str
    resources: Resources
    figure: float | None
    limit: float | None
    unit: str
    faults: tuple[str, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "arch": self.arch,
            "family": self.family,
            "layer": self.layer,
            "config": self.config,
            "resources": self.resources.to_json(),
            "instructions": self.figure,
            "per": self.unit,
            "limit": self.limit,
            "faults": list(self.faults),
            "note": self.note,
        }

    def __str__(self) -> str:
        resources, loop = self.resources, self.resources.loop
        loads = loop.load_widths if loop and loop.load_widths else resources.total.load_widths
        words = [
            f"{resources.registers:3} registers, {resources.spill_bytes} B spilled",
            f"{resources.shared_bytes / 1024:3.0f} KiB shared",
            *([f"{loop.mma:3} MMA of {loop.instructions:4}"] if loop else []),
            f"{'-' if self.figure is None else format(self.figure, '.2f')} per {self.unit}"
            + ("" if self.limit is None else f" (<= {self.limit:.2f})"),
            f"loads {_widths(loads)}",
            f"stores {_widths(resources.total.store_widths)}",
        ]
        verdict = "; ".join(self.faults) or "ok"
        head = f"{self.arch:7} {self.family:13} {self.layer:22} {self.config:36}"
        return f"{head} {', '.join(words)}: {verdict}" + (f" [{self.note}]" if self.note else "")


def resource_faults(resources: Resources, device: DeviceSpec) -> Iterator[str]:
    """No spills, and shared memory that the device has."""
    if resources.spill_bytes:
        yield f"spills {resources.spill_bytes} bytes per thread"
    if resources.shared_bytes > device.shared_per_block:
        yield f"{resources.shared_bytes} bytes of shared memory, the device has {device.shared_per_block}"


def figure_fault(figure: float | None, limit: float | None, unit: str) -> Iterator[str]:
    """The count is within its limit."""
    if limit is not None and (figure is None or figure > limit):
        found = "nothing to count" if figure is None else f"{figure:.2f} instructions"
        yield f"{found} per {unit}, at most {limit:.2f} allowed"


def width_fault(what: str, widths: Mapping[int, int], least: int = VECTOR_BYTES) -> Iterator[str]:
    """There are such accesses, and all are at least `least` bytes wide."""
    if not widths or any(width < least for width in widths):
        yield f"{what} by width in bytes: {dict(widths)}"


def _widths(widths: Mapping[int, int]) -> str:
    return " ".join(f"{count}x{width}B" for width, count in widths.items()) or "none"
