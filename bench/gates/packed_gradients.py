"""What compiled gradients of thin groups are held to: layers of ResNeXt-50 and ShuffleNet at the families' defaults.

Counted is the steady loop per input value of a thread, in fp16 and in bf16: the loop over steps of the weight's
gradient, and the loop over tiles of the input's, whose branch for non-finite values is outside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from triton.backends.compiler import GPUTarget

from grouped_conv.autotune.machine_code.instructions import Instruction, Mix, loops
from grouped_conv.autotune.machine_code.resources import disassembled, read_resources
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults, width_fault
from grouped_conv.bench.gates.gradient_gates import EPILOGUES, PLAIN, family_default
from grouped_conv.kernels.gradient_call import gradient_problem, plan_gradient
from grouped_conv.kernels.launching.launch import Launch, compile_launch
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed.weight_grad_rules import PackedWeightGradConfig, kernel_rows
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "value"
DIRECTIONS = ("input_grad", "weight_grad")
LIMITS = {
    ("input_grad", "rx50 stage 1"): {"sm_80": 11.8, "sm_90": 10.9, "gfx942": 20.4},
    ("weight_grad", "rx50 stage 1"): {"sm_80": 9.9, "sm_90": 9.9, "gfx942": 22.6},
}
"""Instructions per input value of 4 channels per group, 3x3; the implicit GEMM with packs takes 48 on sm_80.
AMD rounds to bf16 by arithmetic before gfx950: 16.2 in fp16, 20.3 in bf16."""
ANY, ANY_AMD = 17.0, 24.0
"""Limits of every other layer, on NVIDIA and on AMD."""
_LAYERS = (
    ("rx50 stage 1", 4, 4, 32, 56, 3, 1),
    ("rx50 stage 2 s2", 8, 8, 32, 56, 3, 2),
    ("rx50 stage 2", 8, 8, 32, 28, 3, 1),
    ("rx50 stage 3 s2", 16, 16, 32, 28, 3, 2),
    ("rx50 stage 3", 16, 16, 32, 14, 3, 1),
    ("grouped 1x1", 8, 8, 30, 28, 1, 1),
)
"""Name, channels per group in and out, groups, image size, kernel, stride."""
DTYPES = ("float16", "bfloat16")


def layers(direction: str, dtype: str = "float16", batch: int = 128) -> Iterator[tuple[str, ConvProblem]]:
    """The layers' gradients, channels_last."""
    for name, c, k, groups, size, kernel, stride in _LAYERS:
        shapes = (batch, c * groups, size, size), (k * groups, c, kernel, kernel)
        problem = ConvProblem.of(*shapes, stride, kernel // 2, groups=groups, dtype=dtype)
        yield name, gradient_problem(problem, direction)


def main_launch(problem: ConvProblem, config: PackedInputGradConfig | PackedWeightGradConfig) -> Launch:
    """The family's own launch."""
    (launch,) = (each for each in plan_gradient(problem, config).launches if each.name == config.family)
    return launch


def findings(
    archs: Sequence[str], dtypes: Sequence[str] = DTYPES, epilogues: Sequence[Epilogue] = EPILOGUES
) -> Iterator[Finding]:
    """Every layer in both directions at its default on each architecture, in fp16 behind each kind of epilogue."""
    for arch in archs:
        for direction in DIRECTIONS:
            for dtype in dtypes:
                for name, problem in layers(direction, dtype):
                    for epilogue in epilogues if dtype == "float16" else (PLAIN,):
                        yield _finding(arch, name, replace(problem, epilogue=epilogue))


def _finding(arch: str, name: str, problem: ConvProblem) -> Finding:
    device = DeviceSpec.get(arch)
    config = family_default(f"packed_{problem.direction}", problem, device)
    target = GPUTarget(device.backend, device.arch, device.warp_size)
    kernel = compile_launch(main_launch(problem, config), target)
    loop = steady_loop(kernel, problem.direction)
    resources = replace(read_resources(kernel), loop=Mix.of(loop) if loop else None)
    figure = len(loop) / values(problem, config, device) if loop else None
    anything = ANY if device.backend == "cuda" else ANY_AMD
    plain = problem.epilogue.is_identity
    limit = LIMITS.get((problem.direction, name), {}).get(arch, anything) if plain else None
    loads = {i.width: 1 for i in loop if i.kind == "global_load"}
    faults = (
        *resource_faults(resources, device),
        *figure_fault(figure, limit, UNIT),
        *width_fault("loads in the loop", loads),
        *width_fault("stores", resources.total.store_widths),
        *([] if any(i.kind == "mma" for i in loop) else ["no tensor-core instruction in the loop"]),
        *(["an atomic instruction"] if atomic(kernel) else []),
    )
    layer = f"{name} {problem.dtype[0]}16" + ("" if plain else f" {problem.epilogue}")
    return Finding(arch, config.family, layer, str(config), resources, figure, limit, UNIT, faults)


def values(problem: ConvProblem, config: Any, device: DeviceSpec) -> float:
    """Input values of one thread in a trip of the steady loop; those of all kernel rows for the weight's gradient."""
    threads = config.num_warps * device.warp_size
    if isinstance(config, PackedWeightGradConfig):
        rows = kernel_rows(problem, config) / problem.kernel_size[0]
        pixels = config.block_k * config.strip * problem.stride[0] * problem.stride[1] * rows
    else:
        pixels = config.block_m * config.strip
    return float(pixels * config.pack * problem.c_per_group / threads)


def steady_loop(kernel: Any, direction: str) -> list[Instruction]:
    """The first loop that multiplies, and stores if the direction does: the one over steps, before a cold branch."""
    wanted = {"mma", "global_store"} if direction == "input_grad" else {"mma", "global_load"}
    for loop in loops(disassembled(kernel)):
        if wanted <= {i.kind for i in loop}:
            return loop
    return []


def atomic(kernel: Any) -> bool:
    """Is there an atomic instruction in the code, as the compiler's last text has it?"""
    text = kernel.asm.get("ptx") or kernel.asm.get("amdgcn", "")
    return any(word in text for word in ("atom.", "red.global", "global_atomic", "buffer_atomic"))
