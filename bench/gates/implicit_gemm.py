"""The implicit GEMM's gate: AlexNet's five convolutions as they compile by default, and loops held to the prototypes.

No spills, shared memory within the device, tensor-core instructions in the inner loop, 16-byte loads there and 16-byte
stores everywhere, and no more instructions per tensor-core instruction than the prototypes of the same tiles had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grouped_conv.autotune.compiling.offline import compile_offline
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "MMA"
DEFAULT_MODULE = Epilogue(bias=True)
"""What a plain `GroupedConv2d(...)` computes."""
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


def findings(archs: Sequence[str]) -> Iterator[Finding]:
    """Everything this gate looks at."""
    yield from default_findings(archs)
    yield from tile_findings(archs)


def default_findings(archs: Sequence[str], epilogue: Epilogue = DEFAULT_MODULE) -> Iterator[Finding]:
    """AlexNet's layers (fp16, batch 128, channels_last) at the heuristic's configuration, on each architecture."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for layer, problem in workload("alexnet", epilogue=epilogue).items():
            config = choose(problem, device)
            resources = _main_resources(problem, device, config)
            faults = list(resource_faults(resources, device))
            if layer not in EXCEPTED:
                faults += width_fault("loads in the inner loop", resources.loop.load_widths if resources.loop else {})
                faults += width_fault("stores", resources.total.store_widths)
            yield _finding(arch, layer, config, resources, faults)


def tile_findings(archs: Sequence[str]) -> Iterator[Finding]:
    """The tiles of `TILE_LIMITS`, on each architecture that has a figure: only the inner loop is judged."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        problems = workload("alexnet", epilogue=Epilogue())
        for tile in TILE_LIMITS:
            if arch in tile.counts:
                resources = _main_resources(problems[tile.layer], device, tile.config)
                yield _finding(arch, tile.layer, tile.config, resources, [])


def _finding(arch: str, layer: str, config: KernelConfig, resources: Resources, faults: list[str]) -> Finding:
    """With the loop's faults: every loop multiplies on tensor cores, in no more instructions than it may take."""
    figure, limit = resources.loop.per_mma if resources.loop else None, _limit(arch, config)
    faults += ["no loop with a tensor-core instruction"] if figure is None else figure_fault(figure, limit, UNIT)
    return Finding(
        arch, config.family, layer, str(config), resources, figure, limit, UNIT, tuple(faults), EXCEPTED.get(layer, "")
    )


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
