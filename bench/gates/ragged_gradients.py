"""The gate of the ragged gradients: their loops held to the uniform gradients' of the same tile, layouts of every kind.

At alignment 8: no spills, 16-byte loads of both operands in the inner loop, 16-byte stores of the gradient or its sums,
and no more instructions per tensor-core instruction than the limits below. Other alignments: no spills, and a loop with
tensor-core instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import Resources, read_resources
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults, width_fault
from grouped_conv.bench.gates.gradient_gates import EPILOGUES, PLAIN, family_default, least_width
from grouped_conv.bench.gates.ragged import LAYOUTS
from grouped_conv.kernels.gradient_call import gradient_problem, plan_gradient
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "MMA"
INPUT_MARGIN = 1.2
"""Input gradient: instructions per tensor-core instruction over those of the uniform loop, which divides by constants:
4.59 and 3.84 on sm_80."""
WEIGHT_LIMITS = {"sm_80": 11.5, "sm_90": 162.0, "sm_100": 174.0, "gfx942": 30.0}
"""Weight gradient: what its own loop reached (11.34, 160, 172.5 and 29.4). The uniform loop is no measure (6.63, 85.5,
88.5 and 21.5): it multiplies 32-bit numbers, this carries pixels' images, rows and columns and adds 64-bit offsets."""
WEIGHT_MARGIN = 1.9
"""The same on other architectures, over the uniform loop."""
INPUT_TILE = {"block_m": 128, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 3}
WEIGHT_TILE = {"block_m": 64, "block_n": 128, "block_k": 32, "num_warps": 4, "num_stages": 3}
Pairs = tuple[tuple[str, KernelConfig, KernelConfig], ...]
PAIRS: Pairs = (
    ("input_grad", InputGradConfig(**INPUT_TILE), RaggedInputGradConfig(**INPUT_TILE)),  # type: ignore[arg-type]
    ("weight_grad", WeightGradConfig(**WEIGHT_TILE), RaggedWeightGradConfig(**WEIGHT_TILE)),  # type: ignore[arg-type]
)


def findings(archs: Sequence[str]) -> Iterator[Finding]:
    """Everything this gate looks at, on each architecture."""
    for arch in archs:
        for direction, uniform, ragged in PAIRS:
            yield loop_finding(arch, direction, uniform, ragged)
            yield from layout_findings(arch, direction)


def loop_finding(arch: str, direction: str, uniform: KernelConfig, ragged: KernelConfig) -> Finding:
    """AlexNet's conv2 with groups of 48, 24 and 24 channels instead of two of 48, on the same tile."""
    device = DeviceSpec.get(arch)
    layer = workload("alexnet", epilogue=Epilogue())["conv2"]
    unequal = replace(layer, layout=GroupLayout.sizes([48, 24, 24], [128, 64, 64]))
    held_to = resources_of(layer, direction, uniform, device)[0]
    margin = INPUT_MARGIN if direction == "input_grad" else WEIGHT_MARGIN
    limit = margin * held_to.loop.per_mma if held_to.loop and held_to.loop.per_mma else None
    if limit and direction == "weight_grad":
        limit = WEIGHT_LIMITS.get(arch, limit)
    finding = _finding(arch, "conv2, 48 + 24 + 24", unequal, direction, ragged, limit)
    faults = finding.faults if limit else (*finding.faults, "the uniform loop has no tensor-core instruction")
    return replace(finding, faults=faults)


def layout_findings(arch: str, direction: str) -> Iterator[Finding]:
    """A 3x3 convolution of each layout (batch 32, 28x28) at its default, its second pass included in the faults: in
    fp16 with each kind of epilogue, and in bf16.
    """
    device = DeviceSpec.get(arch)
    for name, layout in LAYOUTS.items():
        for dtype in ("float16", "bfloat16"):
            for epilogue in EPILOGUES if dtype == "float16" else (PLAIN,):
                problem = ConvProblem(
                    32, layout, (28, 28), (3, 3), padding=(1, 1, 1, 1), dtype=dtype, epilogue=epilogue
                )
                chosen = family_default(f"ragged_{direction}", gradient_problem(problem, direction), device)
                yield _finding(arch, f"{name}, {dtype} {epilogue}", problem, direction, chosen, None)


def _finding(
    arch: str, what: str, problem: ConvProblem, direction: str, config: KernelConfig, limit: float | None
) -> Finding:
    device = DeviceSpec.get(arch)
    main, *others = resources_of(problem, direction, config, device)
    figure = main.loop.per_mma if main.loop else None
    faults = [fault for resources in (main, *others) for fault in resource_faults(resources, device)]
    faults += [*figure_fault(figure, limit, UNIT)] if figure else ["no loop with a tensor-core instruction"]
    known, note = traits(problem.layout), ""
    if known.in_align == known.out_align == 8:
        widths = main.loop.load_widths if main.loop else {}
        faults += width_fault("loads in the inner loop", widths, least_width(config, problem, device))
        faults += width_fault("stores", main.total.store_widths)
    else:
        note = f"runs of {known.in_align} channels: narrower loads"
    return Finding(arch, config.family, what, str(config), main, figure, limit, UNIT, tuple(faults), note)


def resources_of(problem: ConvProblem, direction: str, config: KernelConfig, device: DeviceSpec) -> list[Resources]:
    """The figures of the main launch and of the second pass, if there is one."""
    call = plan_gradient(gradient_problem(problem, direction), config)
    return [read_resources(compile_launch(launch, gpu_target(device))) for launch in call.launches]
