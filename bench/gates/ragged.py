"""Gates of the kernels for unequal groups: layouts of every kind at their defaults, and loops held to uniform ones.

Layouts whose channels come in runs of 8 need wide loads and stores. Others need no more than a loop with tensor-core
instructions and no spills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import read_resources
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.engine import Compiled, Gate, gradients, judged_launches
from grouped_conv.bench.gates.findings import width_fault
from grouped_conv.bench.gates.rules import (
    BIAS_RELU,
    GRADIENT_VARIANTS,
    PLAIN,
    tensor_cores,
    tile_loads,
    wide_stores,
)
from grouped_conv.kernels.call import plan
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.launching.launch import Launch, compile_launch
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig, traits
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

LAYERS = {
    name: ConvProblem(32, layout, (28, 28), (3, 3), padding=(1, 1, 1, 1))
    for name, layout in {
        "log series": GroupLayout.log_series(128, 256, 4),
        "overlap": GroupLayout.overlapping(96, 192, groups=3, width=48),
        "overlap, odd starts": GroupLayout.overlapping(97, 192, groups=3, width=48),
        "random lists": GroupLayout.random_sparse(64, 128, groups=8, width=16),
        "listed runs of 8": GroupLayout.explicit(
            64, [[*range(24, 32), *range(8), *range(48, 64)], [*range(8, 24), *range(32, 48)]], 64
        ),
        "odd sizes": GroupLayout.sizes([33, 20, 11], [64, 32, 32]),
    }.items()
}
UNIFORM = workload("alexnet", epilogue=PLAIN)["conv2"]
UNEQUAL = {"conv2, 48 + 24 + 24": replace(UNIFORM, layout=GroupLayout.sizes([48, 24, 24], [128, 64, 64]))}
"""AlexNet's conv2 with groups of 48, 24 and 24 channels instead of two of 48."""

TILE: dict[str, Any] = {"block_m": 128, "block_n": 128, "block_k": 64, "num_warps": 8, "num_stages": 3}
INPUT_TILE: dict[str, Any] = {"block_m": 128, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 3}
WEIGHT_TILE: dict[str, Any] = {"block_m": 64, "block_n": 128, "block_k": 32, "num_warps": 4, "num_stages": 3}
MARGIN, INPUT_MARGIN, WEIGHT_MARGIN = 1.05, 1.2, 1.9
"""Instructions per tensor-core instruction over those of the uniform loop of the same tile. The input gradient's
uniform loop divides by constants: 4.59 and 3.84 on sm_80."""
WEIGHT_LIMITS = {"sm_80": 11.5, "sm_90": 162.0, "sm_100": 174.0, "gfx942": 30.0}
"""Weight gradient: what its own loop reached (11.34, 160, 172.5 and 29.4). The uniform loop is no measure here (6.63,
85.5, 88.5 and 21.5): it multiplies 32-bit numbers, while this one carries the pixels' images, rows and columns and adds
64-bit offsets."""


def held_to(
    uniform: KernelConfig, margin: float, limits: Mapping[str, float] | None = None
) -> Callable[[str, ConvProblem, Any, DeviceSpec], float]:
    """The limit of a tile: `margin` times the instructions of the uniform loop of the same tile, compiled as well.

    Args:
        limits: take precedence on their architectures.
    """

    def limit(layer: str, problem: ConvProblem, config: Any, device: DeviceSpec) -> float:
        (launch,) = judged_launches(replace(UNIFORM, direction=problem.direction), uniform)
        loop = read_resources(compile_launch(launch, gpu_target(device))).loop
        if not loop or not loop.per_mma:
            raise RuntimeError(f"{uniform} has no loop with a tensor-core instruction on {device.arch_name}")
        return (limits or {}).get(device.arch_name, margin * loop.per_mma)

    return limit


def loads_but_of_lists(compiled: Compiled) -> Iterator[str]:
    """All loads in the loop are 16 bytes wide, except for one load of 4 bytes from an index list."""
    loads = dict(compiled.loop_loads)
    if loads.get(4) == 1:
        del loads[4]
    return width_fault("loads in the inner loop", loads)


def short_runs(compiled: Compiled) -> str:
    """Why the loads cannot be wide."""
    known = traits(compiled.problem.layout)
    aligned = known.in_align == known.out_align == 8
    return "" if aligned else f"runs of {known.in_align} channels: narrower loads"


def every_launch(problem: ConvProblem, config: KernelConfig) -> Sequence[Launch]:
    """The gradient's kernel, which comes first, and its second pass if it has one."""
    return plan(problem, config).launches


FORWARD = Gate(
    family="ragged",
    unit="MMA",
    layers=LAYERS,
    variants=(("float16", BIAS_RELU),),
    rivals=True,
    rules=(tensor_cores,),
    wide=(loads_but_of_lists, wide_stores),
    exemption=short_runs,
)
INPUT_GRAD = Gate(
    family="ragged_input_grad",
    unit="MMA",
    layers=gradients(LAYERS, "input_grad"),
    variants=GRADIENT_VARIANTS,
    launches=every_launch,
    rules=(tensor_cores,),
    wide=(tile_loads, wide_stores),
    exemption=short_runs,
)
WEIGHT_GRAD = replace(INPUT_GRAD, family="ragged_weight_grad", layers=gradients(LAYERS, "weight_grad"))
GATES = (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    replace(
        FORWARD,
        layers=UNEQUAL,
        variants=(),
        choose=lambda problem, device: RaggedConfig(**TILE),
        limit=held_to(ImplicitGemmConfig(**TILE), MARGIN),
    ),
    replace(
        INPUT_GRAD,
        layers=gradients(UNEQUAL, "input_grad"),
        variants=(),
        choose=lambda problem, device: RaggedInputGradConfig(**INPUT_TILE),
        limit=held_to(InputGradConfig(**INPUT_TILE), INPUT_MARGIN),
    ),
    replace(
        WEIGHT_GRAD,
        layers=gradients(UNEQUAL, "weight_grad"),
        variants=(),
        choose=lambda problem, device: RaggedWeightGradConfig(**WEIGHT_TILE),
        limit=held_to(WeightGradConfig(**WEIGHT_TILE), WEIGHT_MARGIN, WEIGHT_LIMITS),
    ),
)
