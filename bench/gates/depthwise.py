"""What compiled depthwise kernels are held to: instructions per output, and MobileNetV2's and ConvNeXt-T's layers.

The count is what one thread issues in all: a loop's body times its trips, everything else once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from grouped_conv.autotune.compiling.offline import CompiledLaunch, gpu_target
from grouped_conv.autotune.machine_code.instructions import Instruction, loops
from grouped_conv.autotune.machine_code.resources import disassembled
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig, per_thread
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "output"
BIAS_RELU = Epilogue("relu", bias=True)
LOOPED = DepthwiseConfig(tile_h=1, tile_w=8, row_loop=True)


@dataclass(frozen=True, slots=True)
class TileLimit:
    """Instructions per output that a tile's code may issue, fp16 with bias and ReLU, 64 channels.

    The prototypes had 27, 61 and 111 on sm_80; 111 at 7x7 was without a loop.
    """

    kernel: int
    config: DepthwiseConfig
    limits: dict[str, float]


TILE_LIMITS = (
    TileLimit(3, DepthwiseConfig(), {"sm_80": 17.0, "sm_90": 17.3, "gfx942": 20.0}),
    TileLimit(3, DepthwiseConfig(pack_weight=False), {"sm_80": 19.3, "sm_90": 19.9, "gfx942": 22.0}),
    TileLimit(5, DepthwiseConfig(), {"sm_80": 39.0, "sm_90": 39.5}),
    TileLimit(5, LOOPED, {"sm_80": 44.0, "sm_90": 44.0, "gfx942": 50.0}),
    TileLimit(7, LOOPED, {"sm_80": 76.5, "sm_90": 77.0, "gfx942": 90.0}),
)


def findings(archs: Sequence[str]) -> Iterator[Finding]:
    """Everything this gate looks at."""
    for arch in archs:
        yield from tile_findings(arch)
        yield from default_findings(arch)


def tile_findings(arch: str) -> Iterator[Finding]:
    """The tiles of `TILE_LIMITS` that have a figure for the architecture."""
    device = DeviceSpec.get(arch)
    for tile in TILE_LIMITS:
        if arch not in tile.limits:
            continue
        config = replace(tile.config, block_w=tile.config.block_w * device.warp_size // 32)
        problem = ConvProblem.of(
            (8, 64, 56, 56), (64, 1, tile.kernel, tile.kernel), 1, tile.kernel // 2, groups=64, epilogue=BIAS_RELU
        )
        compiled = compiled_for(problem, config, device)
        outputs = per_thread(config, device) * config.tile_h * config.tile_w
        figure = issued(disassembled(compiled.kernel), tile.kernel if config.row_loop else 1) / outputs
        resources, limit = compiled.resources, tile.limits[arch]
        faults = (
            *resource_faults(resources, device),
            *figure_fault(figure, limit, UNIT),
            *(width_fault("loads", resources.total.load_widths) if config.pack_weight else ()),
            *width_fault("stores", resources.total.store_widths),
        )
        layer = f"{tile.kernel}x{tile.kernel}"
        yield Finding(arch, config.family, layer, str(config), resources, figure, limit, UNIT, faults)


def default_findings(arch: str) -> Iterator[Finding]:
    """Depthwise layers of MobileNetV2 and ConvNeXt-T at the heuristic's configuration: no spills, 16-byte stores."""
    device = DeviceSpec.get(arch)
    for model in ("mobilenet_v2", "convnext_t"):
        for layer, problem in workload(model, epilogue=BIAS_RELU).items():
            if problem.c_per_group > 1:
                continue
            config = choose(problem, device)
            resources = compiled_for(problem, config, device).resources
            wrong = [] if isinstance(config, DepthwiseConfig) else [f"the heuristic chose {config.family}"]
            faults = (
                *resource_faults(resources, device),
                *width_fault("stores", resources.total.store_widths),
                *wrong,
            )
            name = f"{model} {layer}"
            yield Finding(arch, config.family, name, str(config), resources, None, None, UNIT, faults)


def compiled_for(problem: ConvProblem, config: KernelConfig, device: DeviceSpec) -> CompiledLaunch:
    """The main launch alone."""
    launch = plan_call(problem, config).launches[-1]
    return CompiledLaunch(launch, compile_launch(launch, gpu_target(device)))


def issued(code: Sequence[Instruction], trips: int) -> int:
    """Instructions of one thread when the first loop makes `trips` trips, everything else run once."""
    found = loops(code)
    return len(code) + (trips - 1) * (len(found[0]) if found else 0)
