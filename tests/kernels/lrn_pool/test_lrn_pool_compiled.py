"""The LRN + pool kernel as compiled: executed PTX of sm_80 and sm_90, native on this CPU, and the gate on its code."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from case import Case
from emulated import check_compiled, emulator
from lrn_pool_cases import order_cases, shape_cases
from lrn_pool_oracle import check_output, make_tensors, run_launch
from torch import Tensor
from truth import judge

import grouped_conv
from grouped_conv.autotune.machine_code.instructions import Instruction
from grouped_conv.autotune.model.lrn_pool.forward import choose
from grouped_conv.bench.gates.findings import EVERY_RUN
from grouped_conv.bench.gates.lrn_pool import GATES, LAYERS, LIMIT, ORDERS, executed_instructions
from grouped_conv.kernels import DeviceSpec
from grouped_conv.kernels.launching.launch import Launch, compile_launch
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig, one_warp
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.planning.interpreting import through_driver

(GATE,) = GATES


def emulated_cases() -> list[tuple[int, Case]]:
    """Every odd shape and every order, each on one of the architectures in turn; one configuration compiles sooner."""
    config = LrnPoolConfig(block=64, strip=2, rows=2, num_warps=2)
    cases = [*itertools.islice(shape_cases(), 0, None, 2), *itertools.islice(order_cases(), 0, None, 4)]
    return [(80 + 10 * (index % 2), replace(case, config=config)) for index, case in enumerate(cases)]


@pytest.mark.ptxemu
@pytest.mark.parametrize(("arch", "case"), emulated_cases(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


@pytest.mark.ptxemu
@pytest.mark.parametrize("arch", [80, 90])
def test_aligned_problems_waste_no_sector(arch: int, capsys: pytest.CaptureFixture[str]) -> None:
    """16 bytes a thread, whole sectors; the neighbours of a vector are 4 bytes of sectors that are in L1 by then."""
    problem = LrnPoolProblem.of((2, 64, 13, 9), alpha=0.3, groups=2)  # 2 images x 2 strips x 8 vectors: one warp
    config = LrnPoolConfig(block=32, strip=2, rows=6, num_warps=1)
    _, (stats,) = judge(problem, config, emulator(arch, l1="ptx", l1_kb=32))
    lines = [line for line in str(stats).splitlines() if line.strip().startswith("global")]
    with capsys.disabled():
        print(f"\nLRN + pool on sm_{arch}: {stats.l1_rate:.1%} of sectors hit L1", *lines, sep="\n")
    assert len(lines) == 3
    useful = {line.split()[1]: float(line.split("useful")[1].split("%")[0]) for line in lines}
    assert useful["ld.b128"] == useful["st.b128"] == 100.0
    assert 32 * stats.l1_miss == stats.totals()["unique_read"]  # every sector comes from L2 once, and all of it is used
    assert stats.totals()["shared_wavefronts"] == 0


@pytest.mark.full
@pytest.mark.parametrize("arch", EVERY_RUN)
def test_alexnets_layers_compile_well_by_default(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(GATE.findings(arch))
    with capsys.disabled():
        print("", *found, sep="\n")
    assert [finding.layer for finding in found] == ["norm1+pool1", "norm2+pool2", *ORDERS]
    assert {finding.layer: finding.faults for finding in found if finding.faults} == {}


@pytest.mark.full
@pytest.mark.parametrize("arch", EVERY_RUN)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_other_dtypes_compile_well(dtype: str, arch: str) -> None:
    problem = replace(LAYERS["norm1+pool1"], dtype=dtype)
    device = DeviceSpec.get(arch)
    finding = GATE.judge(dtype, problem, choose(problem, device), device, LIMIT)
    assert finding.faults == (), finding


@pytest.mark.full
def test_the_gate_would_notice() -> None:
    device, config = DeviceSpec.get("sm_80"), LrnPoolConfig(strip=1, rows=13)
    problem = LAYERS["norm2+pool2"]
    finding = GATE.judge("norm2+pool2", problem, config, device, 10.0)
    assert "per pooled value, at most 10.00 allowed" in finding.faults[0]
    odd = replace(problem, channels=258)
    finding = GATE.judge("odd towers", odd, config, device)
    assert any("stores by width" in fault for fault in finding.faults)
    assert any("loads by width" in fault for fault in finding.faults)


def test_executed_instructions_are_counted_by_trip() -> None:
    """10 before and after, a loop of 8 of which 3 finish a row: two rows of a 3x3 pool at stride 2 make five trips."""
    code = [Instruction(address, "ADD", "other") for address in range(18)]
    code[6] = Instruction(6, "BRA", "branch", target=10)
    code[12] = Instruction(12, "BRA", "branch", target=5)
    problem, config = LrnPoolProblem.of((1, 8, 5, 5)), LrnPoolConfig(rows=2)
    assert executed_instructions(code, problem, config) == 10 + 5 * (8 - 3) + 2 * 3


@pytest.mark.native
@pytest.mark.parametrize("order", ["lrn-pool", "relu-pool-lrn"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_random_sizes_natively(dtype: str, order: str, native: ModuleType) -> None:
    """Two compiled variants, 40 random sizes each: batch, image, channels and towers change, the code does not."""
    kernels: dict[str, Any] = {}
    draw = random.Random(f"{dtype} {order}")

    def run(launch: Launch, tensors: Mapping[str, Tensor]) -> None:
        key = launch.source().hash()
        kernel = kernels.setdefault(key, None) or compile_launch(launch, native.driver.get_current_target())
        kernels[key] = kernel
        kernel[launch.grid](*launch.positional(tensors))

    for seed in range(40):
        groups, height, width = draw.randint(1, 3), draw.randint(3, 20), draw.randint(3, 20)
        shape = (draw.randint(1, 3), 8 * groups * draw.randint(1, 4), height, width)
        problem = LrnPoolProblem.of(shape, order, dtype=dtype, alpha=0.3, groups=groups, ceil_mode=seed % 2 == 0)
        config = LrnPoolConfig(num_warps=1, block=32, strip=2, rows=draw.randint(1, 6))
        tensors = make_tensors(problem, seed)
        run_launch(problem, config, tensors, run)
        check_output(problem, tensors, str(problem))
    assert len(kernels) == 1


@pytest.mark.native
def test_alexnets_layers_in_full_by_the_public_call(native: ModuleType) -> None:
    for layer in LAYERS.values():
        problem = replace(layer, batch=2)
        tensors = make_tensors(problem)
        with through_driver(), grouped_conv.trace() as calls:
            tensors["output"] = grouped_conv.lrn_max_pool2d(
                tensors["input"], alpha=problem.alpha, k=problem.k, ceil_mode=True, groups=2
            )
        assert [call.path for call in calls] == ["lrn_pool"]
        assert calls[0].config == one_warp(problem)
        check_output(problem, tensors)
