"""The gradient kernels as compiled for sm_80 and sm_90, executed instruction by instruction: right, in bounds, no race.

Determinism by construction: no atomic instruction is compiled in, and no address is written twice.
"""

import itertools
import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from case import Case
from emulated import assert_sound, check_compiled, emulator
from gradient_cases import SHAPES, TABLE_SHAPES, conv, fitted
from gradient_oracle import (
    check_gradient,
    gradient_tensors,
    run_bias_gradient,
    run_written_gradient,
)
from loop_figures import lines_of, loop_figures
from truth import judge

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue
from grouped_conv.kernels.device_code import gradient, reduction
from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.gradient_call import gradient_problem, plan_bias_gradient, plan_gradient
from grouped_conv.kernels.implicit_gemm import input_grad, pixel_table, weight_grad
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.passes import channel_sums, gradient_reduce
from grouped_conv.kernels.values.config import KernelConfig

DEVICES = {80: DeviceSpec.get("a100"), 90: DeviceSpec.get("h100")}
pytestmark = pytest.mark.ptxemu
EPILOGUES = (Epilogue(), Epilogue("relu", scale=True), Epilogue("silu"), Epilogue("gelu", scale=True, shuffle=1))


def emulated_input_config(problem: ConvProblem, arch: int, stages: int, warps: int) -> InputGradConfig:
    """Where wgmma must not take the gradient from registers it is the second operand."""
    fused = problem.epilogue.activation != "none" or problem.epilogue.scale
    blocks = (64 if arch == 90 and not fused else 32, 64 if arch == 90 and fused else 32)
    if arch == 90 and problem.precision == "tf32":
        blocks = (32, 32)
    return InputGradConfig(
        block_m=blocks[0], block_n=blocks[1], block_k=32, num_stages=stages, num_warps=warps, swap=fused
    )


def emulated_cases() -> list[tuple[int, Case]]:
    """Every shape in both directions, architectures, dtypes, stages and warps in turn; tiles for wgmma on sm_90."""
    variants = itertools.cycle(itertools.product((1, 2, 3), (4, 8)))
    dtypes = itertools.cycle((("float16", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee")))
    epilogues = itertools.cycle(EPILOGUES)
    found: list[tuple[int, Case]] = []
    for (reason, problem), (stages, warps) in zip(SHAPES, variants, strict=False):
        for direction, arch in itertools.product("iw", (80, 90)):
            dtype, precision = next(dtypes)
            varied = replace(problem, dtype=dtype, precision=precision, epilogue=next(epilogues))
            block_m = 64 if arch == 90 and precision == "ieee" else 32
            config: KernelConfig = (
                emulated_input_config(varied, arch, stages, warps)
                if direction == "i"
                else WeightGradConfig(
                    block_m=block_m, block_n=32, block_k=32, splits=2, num_stages=stages, num_warps=warps
                )
            )
            case = Case(reason, varied, fitted(varied, config))
            assert family_of(case.config).why_not_on(case.gradient, case.config, DEVICES[arch]) is None
            found.append((arch, case))
        next(epilogues)
    return found


def emulated_table_cases() -> list[tuple[int, Case]]:
    """Weight gradients that read a table of pixels: every shape, with stages, warps, dtypes and splits in turn."""
    variants = itertools.cycle(itertools.product((3, 2, 1, 4), (4, 8), (2, 1, 4)))
    dtypes = itertools.cycle((("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "tf32")))
    epilogues = itertools.cycle((Epilogue(), Epilogue("relu", scale=True), Epilogue(), Epilogue(), Epilogue("silu")))
    found = []
    for (reason, problem), arch in itertools.product(TABLE_SHAPES, (80, 90)):
        (dtype, precision), (stages, warps, splits) = next(dtypes), next(variants)
        varied = replace(problem, dtype=dtype, precision=precision, epilogue=next(epilogues))
        config = WeightGradConfig(
            block_m=64 if arch == 90 and precision == "ieee" else 32, block_n=32, block_k=32, splits=splits,
            num_stages=stages, num_warps=warps, pixel_table=True,
        )  # fmt: skip
        case = Case(reason, varied, fitted(varied, config))
        assert family_of(case.config).why_not_on(case.gradient, case.config, DEVICES[arch]) is None
        found.append((arch, case))
    return found


@pytest.mark.parametrize(
    ("arch", "case"), [*emulated_cases(), *emulated_table_cases()], ids=lambda value: getattr(value, "id", value)
)
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
def test_bias_and_residual(arch: int, activation: str) -> None:
    problem = conv((2, 40, 9, 7), (72, 40, 1, 1), epilogue=Epilogue(activation, bias=True, residual=True))
    tensors = gradient_tensors(problem)
    runs = run_bias_gradient(problem, tensors, emulator(arch), grad_residual=True)
    check_gradient(problem, tensors, "bias")
    check_gradient(problem, tensors, "residual")
    assert_sound(runs)


ALIGNED = {
    "stride 1": conv((1, 128, 9, 9), (128, 64, 3, 3), padding=1),
    "stride 2": conv((1, 128, 13, 13), (128, 64, 3, 3), stride=2, padding=1),
    "conv2-like": conv((1, 96, 9, 9), (128, 48, 5, 5), padding=2),
}


LOOPS = (input_grad, weight_grad, pixel_table, gradient, reduction, gradient_reduce)


def figures(stats: Any, sources: tuple[ModuleType, ...] = LOOPS) -> tuple[float, float]:
    """Useful part of the sectors and bank conflicts in the loops."""
    return loop_figures(stats, lines_of(stats, *sources), uses_shared=False)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("direction", ["input_grad", "weight_grad", "weight_grad table"])
def test_aligned_problems(direction: str, name: str, arch: int, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    problem: ConvProblem = replace(ALIGNED[name], dtype=dtype, precision="tf32")
    block_k, block_m = (32, 32) if dtype == "float32" else (64, 64)
    direction, _, table = direction.partition(" ")
    config: KernelConfig = WeightGradConfig(
        block_m=block_m, block_n=64, block_k=block_k, num_stages=3, pixel_table=bool(table)
    )
    if direction == "input_grad":
        config = InputGradConfig(
            block_m=block_m, block_n=64, block_k=block_k, num_stages=3, loop_order="channels_inner"
        )
    _, runs = judge(problem, config, emulator(arch), name)
    for run in runs:
        useful, conflict = figures(run)
        with capsys.disabled():
            print(f"\n{name} {direction} sm_{arch} {dtype}: useful {useful:.3f}, conflicts {conflict:.2f}", end="")
        assert not run.races
        assert useful >= 0.9
        assert conflict <= 1.2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("arch", [80, 90])
def test_a_written_gradient(arch: int, activation: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The pass wastes no sector, and what it writes is what the other kernels read."""
    epilogue = Epilogue(activation, bias=True, residual=True)
    problem = conv((2, 64, 9, 9), (128, 32, 3, 3), padding=1, dtype=dtype, precision="tf32", epilogue=epilogue)
    configs: list[KernelConfig] = [InputGradConfig(block_m=32, block_n=32, block_k=32, num_stages=3)]
    configs.append(WeightGradConfig(block_m=32, block_n=32, block_k=32, num_stages=3, splits=2))
    for config in configs:
        tensors = gradient_tensors(problem)
        runs = run_written_gradient(gradient_problem(problem, config.direction), config, tensors, emulator(arch))
        for name in ("bias", "residual", config.direction.removesuffix("_grad")):
            check_gradient(problem, tensors, name)
        assert_sound(runs)
    useful, _ = figures(runs[0], (channel_sums, gradient))
    with capsys.disabled():
        print(f"\nwritten {activation} sm_{arch} {dtype}: useful {useful:.3f}", end="")
    assert useful >= 0.9


@pytest.mark.parametrize("device", ["a100", "h100"])
def test_nothing_atomic_is_compiled(device: str) -> None:
    spec = DeviceSpec.get(device)
    problem = conv((8, 64, 14, 14), (64, 32, 3, 3), padding=1, epilogue=Epilogue("relu", scale=True))
    calls = [
        plan_gradient(gradient_problem(problem, "input_grad"), InputGradConfig()),
        plan_gradient(gradient_problem(problem, "weight_grad"), WeightGradConfig(splits=4), grad_scale=True),
        plan_bias_gradient(gradient_problem(problem, "weight_grad"), grad_residual=True),
    ]
    for call in calls:
        for launch in call.launches:
            ptx = compile_launch(launch, gpu_target(spec)).asm["ptx"]
            assert not re.search(r"\b(atom|red)\.", ptx), launch.name
