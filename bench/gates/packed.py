"""Gates of the kernels for thin groups: ResNeXt-50's and ShuffleNet's layers, forward and both gradients.

The figure counts the steady loop over tiles or steps, per output or input value of a thread. The branch that computes
tiles with non-finite values again is outside that loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grouped_conv.bench.gates.engine import Compiled, Gate, first_loop, gradients, per, square
from grouped_conv.bench.gates.rules import (
    BIAS_RELU,
    GRADIENT_VARIANTS,
    no_atomics,
    tensor_cores,
    wide_loop_loads,
    wide_stores,
)
from grouped_conv.kernels.packed.weight_grad_rules import kernel_rows
from grouped_conv.kernels.values.device import DeviceSpec

LAYERS = {
    "rx50 stage 1": square(4, 4, 32, 56, 3),
    "rx50 stage 2 s2": square(8, 8, 32, 56, 3, 2),
    "rx50 stage 2": square(8, 8, 32, 28, 3),
    "rx50 stage 3 s2": square(16, 16, 32, 28, 3, 2),
    "rx50 stage 3": square(16, 16, 32, 14, 3),
    "grouped 1x1": square(8, 8, 30, 28, 1),
}
FORWARD_LAYERS = LAYERS | {"rx50 stage 4 s2": square(32, 32, 32, 14, 3, 2), "rx50 stage 4": square(32, 32, 32, 7, 3)}

LIMITS = {
    "packed_groups": {"sm_80": 11.0, "sm_90": 11.0, "gfx942": 25.0},
    "packed_input_grad": {"sm_80": 11.8, "sm_90": 10.9, "gfx942": 20.4},
    "packed_weight_grad": {"sm_80": 9.9, "sm_90": 9.9, "gfx942": 22.6},
}
"""Instructions per value of `rx50 stage 1`: 4 channels per group, 3x3.

- Forward, with bias and ReLU: the prototype had 24 to 25 on NVIDIA, without isolation. AMD's compiler guards each
  masked load with a branch and takes 4 instructions for a ReLU that keeps NaN.
- Gradients: the implicit GEMM with packs takes 48 on sm_80. AMD rounds to bf16 by arithmetic before gfx950: 16.2 in
  fp16, 20.3 in bf16."""
OTHER_LIMITS = {"packed_groups": (29.0, 34.0), "packed_input_grad": (17.0, 24.0), "packed_weight_grad": (17.0, 24.0)}
"""Limits of every other layer and architecture, on NVIDIA and on AMD."""


def limit(layer: str, problem: Any, config: Any, device: DeviceSpec) -> float | None:
    """A gradient has a limit only without an activation and a scale."""
    if problem.direction != "forward" and not problem.epilogue.is_identity:
        return None
    other = OTHER_LIMITS[config.family][device.backend == "hip"]
    held = LIMITS[config.family] if problem.c_per_group == 4 else {}
    return held.get(device.arch_name, other)


def pixels(compiled: Compiled) -> float:
    """Pixels of one step, times the groups of a pack."""
    config = compiled.config
    return float(config.block_m * config.strip * config.pack)


def weight_pixels(compiled: Compiled) -> float:
    """Input pixels of one step of the weight's gradient, times the groups of a pack, for one of its parts of rows."""
    config, problem = compiled.config, compiled.problem
    rows = kernel_rows(problem, config) / problem.kernel_size[0]
    return float(config.block_k * config.strip * config.pack * problem.stride[0] * problem.stride[1] * rows)


FORWARD = Gate(
    family="packed_groups",
    unit="output",
    layers=FORWARD_LAYERS,
    variants=(("float16", BIAS_RELU),),
    limit=limit,
    loop=first_loop("mma", "global_store"),
    count=per(lambda compiled: pixels(compiled) * compiled.problem.k_per_group),
    rules=(tensor_cores, wide_loop_loads, wide_stores),
)
INPUT_GRAD = replace(
    FORWARD,
    family="packed_input_grad",
    unit="value",
    layers=gradients(LAYERS, "input_grad"),
    variants=GRADIENT_VARIANTS,
    count=per(lambda compiled: pixels(compiled) * compiled.problem.c_per_group),
    rules=(*FORWARD.rules, no_atomics),
)
WEIGHT_GRAD = replace(
    INPUT_GRAD,
    family="packed_weight_grad",
    layers=gradients(LAYERS, "weight_grad"),
    loop=first_loop("mma", "global_load"),
    count=per(lambda compiled: weight_pixels(compiled) * compiled.problem.c_per_group),
)
GATES = (FORWARD, INPUT_GRAD, WEIGHT_GRAD)
