"""What compiled packed-groups kernels are held to: thin layers of ResNeXt-50 and ShuffleNet at the family's defaults.

Counted is the steady loop over tiles, isolation included, per output value of a thread; the branch that recomputes
tiles with non-finite values is outside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from grouped_conv.autotune.compiling.offline import compile_offline
from grouped_conv.autotune.machine_code.instructions import Instruction, Mix, loops
from grouped_conv.autotune.machine_code.resources import disassembled
from grouped_conv.autotune.model.families import MODELS, predict
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "output"
LIMITS = {"rx50 stage 1": {"sm_80": 11.0, "sm_90": 11.0, "gfx942": 25.0}}
"""Instructions per output of 4 channels per group, 3x3, bias and ReLU; the prototype had 24 to 25 on NVIDIA, without
isolation. AMD's compiler guards each masked load with a branch and takes 4 instructions for a ReLU that keeps NaN."""
ANY, ANY_AMD = 29.0, 34.0
"""Limits of every other layer, on NVIDIA and on AMD."""
_LAYERS = (
    ("rx50 stage 1", 4, 4, 32, 56, 3, 1),
    ("rx50 stage 2 s2", 8, 8, 32, 56, 3, 2),
    ("rx50 stage 2", 8, 8, 32, 28, 3, 1),
    ("rx50 stage 3 s2", 16, 16, 32, 28, 3, 2),
    ("rx50 stage 3", 16, 16, 32, 14, 3, 1),
    ("rx50 stage 4 s2", 32, 32, 32, 14, 3, 2),
    ("rx50 stage 4", 32, 32, 32, 7, 3, 1),
    ("grouped 1x1", 8, 8, 30, 28, 1, 1),
)
"""Name, channels per group in and out, groups, image size, kernel, stride."""


def layers(batch: int = 128) -> Iterator[tuple[str, ConvProblem]]:
    """The layers, fp16, channels_last, with bias and ReLU."""
    for name, c, k, groups, size, kernel, stride in _LAYERS:
        yield (
            name,
            ConvProblem.of(
                (batch, c * groups, size, size),
                (k * groups, c, kernel, kernel),
                stride,
                kernel // 2,
                groups=groups,
                epilogue=Epilogue("relu", bias=True),
            ),
        )


def default(problem: ConvProblem, device: DeviceSpec) -> PackedGroupsConfig:
    """The family's own choice, whichever family the heuristic prefers."""
    valid = [c for c in MODELS["packed_groups"].defaults(problem, device) if why_invalid(problem, c, device) is None]
    return min(valid, key=lambda config: predict(problem, config, device).weighed_us)


def findings(archs: Sequence[str]) -> Iterator[Finding]:
    """Every layer at its default on each architecture."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for name, problem in layers():
            config = default(problem, device)
            (launch,) = compile_offline(problem, device, config)
            loop = steady_loop(launch.kernel)
            threads = config.num_warps * device.warp_size
            outputs = config.block_m * config.strip * config.pack * problem.k_per_group / threads
            figure = len(loop) / outputs if loop else None
            limit = LIMITS.get(name, {}).get(arch, ANY if device.backend == "cuda" else ANY_AMD)
            resources = replace(launch.resources, loop=Mix.of(loop) if loop else None)
            loads = {i.width: 1 for i in loop if i.kind == "global_load"}
            faults = (
                *resource_faults(resources, device),
                *figure_fault(figure, limit, UNIT),
                *width_fault("loads in the loop", loads),
                *width_fault("stores", resources.total.store_widths),
                *([] if any(i.kind == "mma" for i in loop) else ["no tensor-core instruction in the loop"]),
            )
            yield Finding(arch, config.family, name, str(config), resources, figure, limit, UNIT, faults)


def steady_loop(kernel: Any) -> list[Instruction]:
    """The first loop in the code that both multiplies and stores: the one over tiles, before the cold branch."""
    for loop in loops(disassembled(kernel)):
        if {"mma", "global_store"} <= {i.kind for i in loop}:
            return loop
    return []
