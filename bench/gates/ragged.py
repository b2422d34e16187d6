"""The ragged kernel's gate: layouts of every kind at their defaults, and its loop held to the uniform one of that tile.

At alignment 8: no spills, shared memory within the device, tensor-core instructions in the inner loop, 16-byte loads
there and 16-byte stores everywhere, and at most 5 % more instructions per tensor-core instruction than the implicit
GEMM's flat loop of the same tile, compiled by the same compiler. Other alignments: no spills, tensor-core instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from grouped_conv.autotune.compiling.offline import compile_offline
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.findings import VECTOR_BYTES, Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig, traits
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "MMA"
MARGIN = 1.05
"""Instructions per tensor-core instruction, over those of the uniform flat loop."""
TILE = ImplicitGemmConfig(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
LAYOUTS = {
    "log series": GroupLayout.log_series(128, 256, 4),
    "overlap": GroupLayout.overlapping(96, 192, groups=3, width=48),
    "overlap, odd starts": GroupLayout.overlapping(97, 192, groups=3, width=48),
    "random lists": GroupLayout.random_sparse(64, 128, groups=8, width=16),
    "listed runs of 8": GroupLayout.explicit(
        64, [[*range(24, 32), *range(8), *range(48, 64)], [*range(8, 24), *range(32, 48)]], 64
    ),
    "odd sizes": GroupLayout.sizes([33, 20, 11], [64, 32, 32]),
}


def findings(archs: Sequence[str]) -> Iterator[Finding]:
    """Everything this gate looks at, on each architecture."""
    for arch in archs:
        yield loop_finding(arch)
        yield from default_findings(arch)


def loop_finding(arch: str) -> Finding:
    """AlexNet's conv2 with groups of 48, 24 and 24 channels instead of two of 48, on the same tile."""
    device = DeviceSpec.get(arch)
    uniform = workload("alexnet", epilogue=Epilogue())["conv2"]
    ragged = replace(uniform, layout=GroupLayout.sizes([48, 24, 24], [128, 64, 64]))
    config = RaggedConfig(
        block_m=TILE.block_m,
        block_n=TILE.block_n,
        block_k=TILE.block_k,
        num_warps=TILE.num_warps,
        num_stages=TILE.num_stages,
    )
    held_to = _resources(uniform, device, TILE)
    limit = MARGIN * held_to.loop.per_mma if held_to.loop and held_to.loop.per_mma else None
    resources = _resources(ragged, device, config)
    figure = resources.loop.per_mma if resources.loop else None
    faults = [*resource_faults(resources, device), *figure_fault(figure, limit, UNIT), *_widths(resources)]
    faults += [] if limit else ["the uniform loop has no tensor-core instruction to compare with"]
    return Finding(
        arch, config.family, "conv2, 48 + 24 + 24", str(config), resources, figure, limit, UNIT, tuple(faults)
    )


def default_findings(arch: str) -> Iterator[Finding]:
    """A 3x3 convolution of each layout (fp16, batch 32, 28x28, bias and ReLU) at the heuristic's choice."""
    device = DeviceSpec.get(arch)
    for name, layout in LAYOUTS.items():
        problem = ConvProblem(32, layout, (28, 28), (3, 3), padding=(1, 1, 1, 1), epilogue=Epilogue("relu", bias=True))
        config = choose(problem, device)
        resources = _resources(problem, device, config)
        figure = resources.loop.per_mma if resources.loop else None
        faults = [*resource_faults(resources, device)]
        faults += [] if figure else ["no loop with a tensor-core instruction"]
        aligned, note = traits(layout).in_align == 8, ""
        if aligned:
            faults += _widths(resources)
        else:
            note = f"runs of {traits(layout).in_align} channels: narrower loads"
        yield Finding(arch, config.family, name, str(config), resources, figure, None, UNIT, tuple(faults), note)


def _widths(resources: Resources) -> list[str]:
    """16-byte loads of both operands and stores; an index list's one load of 4 bytes per trip is not an operand's."""
    loads = dict(resources.loop.load_widths) if resources.loop else {}
    if loads.get(4) == 1:
        del loads[4]
    stores = resources.total.store_widths
    return [*width_fault("loads in the inner loop", loads, VECTOR_BYTES), *width_fault("stores", stores, VECTOR_BYTES)]


def _resources(problem: ConvProblem, device: DeviceSpec, config: KernelConfig) -> Resources:
    launches = compile_offline(problem, device, config)
    return next(launch.resources for launch in launches if launch.name == config.family)
