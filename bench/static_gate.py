"""Exact gate on compiled code, without a GPU: AlexNet's five convolutions as they compile by default, per architecture.

`python -m grouped_conv.bench.static_gate` prints what was found and exits with 1 if anything is worse than it may be.
The figures are counts, so the gate has no tolerance: no spills, shared memory within the device, tensor-core
instructions in the inner loop, 16-byte loads there and 16-byte stores everywhere, and no more instructions per
tensor-core instruction than the prototypes of the same tiles had.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from grouped_conv.autotune.heuristic import choose
from grouped_conv.autotune.instructions import Mix
from grouped_conv.autotune.offline import compile_offline
from grouped_conv.autotune.resources import Resources
from grouped_conv.autotune.workloads import workload
from grouped_conv.kernels.config import ImplicitGemmConfig, KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.epilogue import Epilogue
from grouped_conv.kernels.problem import ConvProblem

EVERY_RUN = ("sm_80", "sm_90", "gfx942")
SWEEP = ("sm_86", "sm_89", "sm_100", "sm_120")
DEFAULT_MODULE = Epilogue(bias=True)
"""What a plain `GroupedConv2d(...)` computes."""
VECTOR_BYTES = 16
EXCEPTED = {
    "conv1": "3 channels: a pixel is 6 bytes and a filter 726, so both tiles load 2 bytes at a time through registers"
}
"""Layers whose loads cannot be 16 bytes wide, and why."""


@dataclass(frozen=True, slots=True)
class TileLimit:
    """A tile whose inner loop was counted in the prototypes of this design, compiled offline.

    Counted with Triton 3.9, but for two loops that 3.8, which this gate runs with, makes longer from the same
    prototype: gfx942 on 4 warps (3.9: 168) and sm_120 (3.9: 156).

    Attributes:
        layer: the AlexNet layer to compile it with; one whose output channels fill whole tiles, as the prototypes' did.
        config: the tile.
        counts: by architecture, (tensor-core instructions, all instructions) of one warp and one trip.
    """

    layer: str
    config: ImplicitGemmConfig
    counts: Mapping[str, tuple[int, int]]


_TAPS = ImplicitGemmConfig(block_m=128, block_n=128, block_k=64, num_warps=4, num_stages=3, loop_order="channels_inner")
TILE_LIMITS = (
    TileLimit(
        "conv5",
        _TAPS,
        {"sm_80": (128, 303), "sm_90": (8, 161), "sm_100": (4, 166), "gfx942": (32, 181)},
    ),
    TileLimit(
        "conv5",
        replace(_TAPS, num_warps=8),
        {
            "sm_80": (64, 175),
            "sm_86": (64, 175),
            "sm_89": (64, 175),
            "sm_90": (4, 140),
            "sm_100": (4, 131),
            "sm_120": (64, 158),
        },
    ),
    TileLimit(
        "conv2",
        replace(_TAPS, num_warps=8, loop_order="flat"),
        {"sm_80": (64, 216), "sm_90": (4, 147), "sm_100": (4, 143), "gfx942": (16, 138)},
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One compiled kernel and what is wrong with it.

    Attributes:
        arch, layer: what was compiled, for which architecture.
        config: with which configuration.
        resources: exact figures of the code.
        limit: instructions per tensor-core instruction it may have at most; `None` where none is known.
        faults: one line per broken rule; empty when the kernel passes.
        note: why a rule does not apply, for a layer in `EXCEPTED`.
    """

    arch: str
    layer: str
    config: KernelConfig
    resources: Resources
    limit: float | None
    faults: tuple[str, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "arch": self.arch,
            "layer": self.layer,
            "config": str(self.config),
            "resources": self.resources.to_json(),
            "instructions_per_mma": self.resources.loop.per_mma if self.resources.loop else None,
            "limit": self.limit,
            "faults": list(self.faults),
            "note": self.note,
        }


def default_findings(archs: Sequence[str], epilogue: Epilogue = DEFAULT_MODULE) -> Iterator[Finding]:
    """AlexNet's layers (fp16, batch 128, channels_last) at the heuristic's configuration, on each architecture."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for layer, problem in workload("alexnet", epilogue=epilogue).items():
            config = choose(problem, device)
            resources = _main_resources(problem, device, config)
            limit = _limit(arch, config)
            faults = [*_resource_faults(resources, device), *_loop_faults(resources.loop, limit)]
            if layer not in EXCEPTED:
                faults += _width_faults(resources)
            yield Finding(arch, layer, config, resources, limit, tuple(faults), EXCEPTED.get(layer, ""))


def tile_findings(archs: Sequence[str]) -> Iterator[Finding]:
    """The tiles of `TILE_LIMITS`, on each architecture that has a figure: only the inner loop is judged."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        problems = workload("alexnet", epilogue=Epilogue())
        for tile in TILE_LIMITS:
            if arch in tile.counts:
                resources = _main_resources(problems[tile.layer], device, tile.config)
                limit = _limit(arch, tile.config)
                faults = tuple(_loop_faults(resources.loop, limit))
                yield Finding(arch, tile.layer, tile.config, resources, limit, faults)


def _main_resources(problem: ConvProblem, device: DeviceSpec, config: KernelConfig) -> Resources:
    launches = compile_offline(problem, device, config)
    return next(launch.resources for launch in launches if launch.name == config.family)


def _limit(arch: str, config: KernelConfig) -> float | None:
    """Instructions per tensor-core instruction of the prototypes' same tile; both orders of whole taps share one."""
    for tile in TILE_LIMITS:
        if _shape(tile.config) == _shape(config) and arch in tile.counts:
            multiplies, instructions = tile.counts[arch]
            return instructions / multiplies
    return None


def _shape(config: KernelConfig) -> tuple[Any, ...]:
    if not isinstance(config, ImplicitGemmConfig):
        return (config,)
    return config.block_m, config.block_n, config.block_k, config.num_warps, config.loop_order == "flat"


def _resource_faults(resources: Resources, device: DeviceSpec) -> Iterator[str]:
    if resources.spill_bytes:
        yield f"spills {resources.spill_bytes} bytes per thread"
    if resources.shared_bytes > device.shared_per_block:
        yield f"{resources.shared_bytes} bytes of shared memory, the device has {device.shared_per_block}"


def _loop_faults(loop: Mix | None, limit: float | None) -> Iterator[str]:
    if loop is None or loop.per_mma is None:
        yield "no loop with a tensor-core instruction"
    elif limit is not None and loop.per_mma > limit:
        yield f"{loop.per_mma:.2f} instructions per tensor-core instruction, at most {limit:.2f} allowed"


def _width_faults(resources: Resources) -> Iterator[str]:
    loads = resources.loop.load_widths if resources.loop else {}
    narrow = {width: count for width, count in loads.items() if width < VECTOR_BYTES}
    if narrow or not loads:
        yield f"loads in the inner loop by width in bytes: {dict(loads)}"
    narrow = {width: count for width, count in resources.total.store_widths.items() if width < VECTOR_BYTES}
    if narrow or not resources.total.store_widths:
        yield f"stores by width in bytes: {dict(resources.total.store_widths)}"


@click.command()
@click.option("--arch", "archs", multiple=True, help="sm_80, gfx942, ...; may be given more than once.")
@click.option("--all", "everything", is_flag=True, help="Also the architectures of the sweep.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(archs: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Compile AlexNet's layers at their defaults for each architecture and judge the code; exit code 1 on a fault."""
    chosen = archs or (EVERY_RUN + SWEEP if everything else EVERY_RUN)
    findings = [*default_findings(chosen), *tile_findings(chosen)]
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(_line(finding))
    faulty = sum(bool(finding.faults) for finding in findings)
    click.echo(f"{len(findings)} kernels compiled, {faulty} with faults", err=True)
    raise SystemExit(1 if faulty else 0)


def _line(finding: Finding) -> str:
    resources, loop = finding.resources, finding.resources.loop
    per_mma = "-" if loop is None or loop.per_mma is None else f"{loop.per_mma:.2f}"
    allowed = "" if finding.limit is None else f" (<= {finding.limit:.2f})"
    widths = f"loads {_widths(loop.load_widths if loop else {})}, stores {_widths(resources.total.store_widths)}"
    verdict = "; ".join(finding.faults) or "ok"
    return (
        f"{finding.arch:7} {finding.layer:6} {finding.config!s:36} {resources.registers:3} registers, "
        f"{resources.spill_bytes} B spilled, {resources.shared_bytes / 1024:3.0f} KiB shared, "
        f"{loop.mma if loop else 0:3} MMA of {loop.instructions if loop else 0:4}, {per_mma} per MMA{allowed}, "
        f"{widths}: {verdict}" + (f" [{finding.note}]" if finding.note else "")
    )


def _widths(widths: Mapping[int, int]) -> str:
    return " ".join(f"{count}x{width}B" for width, count in widths.items()) or "none"


if __name__ == "__main__":
    main()
