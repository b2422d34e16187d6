"""The packed-groups kernel as compiled: executed from its PTX, counted in its machine code, run on this CPU."""

import itertools
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from case import Case
from conv_oracle import check_output, make_tensors, run_call
from emulated import check_compiled, emulator
from loop_figures import lines_of_functions, loop_figures
from native_variants import Runner
from packed_cases import BIAS_RELU, STEP, shape_cases, shuffle_cases, thin
from truth import judge

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import Resources, read_resources
from grouped_conv.bench.gates.families import findings
from grouped_conv.kernels import ConvProblem
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig, one_warp
from grouped_conv.kernels.values.device import DeviceSpec


def emulated_cases() -> list[tuple[int, Case]]:
    """A third of the shapes' cases and of the shuffles, on both architectures in turn, 1, 2 and 4 warps."""
    cases = [*itertools.islice(shape_cases(), 0, None, 4), *itertools.islice(shuffle_cases(), 0, None, 3)]
    variants = itertools.cycle([(80, 1, 16), (90, 2, 32), (80, 2, 32), (90, 4, 32)])
    # exact fp32 is unrolled scalar multiplies on NVIDIA, minutes to assemble and to execute: TF32 stands in for it
    return [
        (
            arch,
            replace(
                case,
                problem=replace(case.problem, precision="tf32"),
                config=replace(
                    case.config,
                    num_warps=warps,
                    block_m=block_m,
                    pack=max(1, min(case.config.pack, 32 // max(case.problem.c_per_group, case.problem.k_per_group))),
                ),
            ),
        )
        for case, (arch, warps, block_m) in zip(cases, variants, strict=False)
    ]


@pytest.mark.ptxemu
@pytest.mark.parametrize(("arch", "case"), emulated_cases(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


ALIGNED = [
    ("4 per group", thin(4, 4, 8, (8, 14), padding=1), PackedGroupsConfig(pack=4, strip=7, block_m=16, num_warps=1)),
    ("8 per group", thin(8, 8, 4, (8, 8), padding=1), PackedGroupsConfig(pack=4, strip=4, block_m=16, num_warps=1)),
    ("stride 2", thin(8, 8, 4, (15, 16), padding=1, stride=2), PackedGroupsConfig(pack=2, block_m=16, num_warps=1)),
    (
        "shuffled output",
        thin(4, 4, 8, (8, 8), padding=1, epilogue=replace(BIAS_RELU, shuffle=8)),
        PackedGroupsConfig(pack=8, strip=4, block_m=32),
    ),
]


@pytest.mark.ptxemu
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("what", "problem", "config"), ALIGNED, ids=[row[0] for row in ALIGNED])
def test_aligned_problems_waste_no_sector(
    what: str, problem: ConvProblem, config: PackedGroupsConfig, arch: int
) -> None:
    _, (stats,) = judge(problem, config, emulator(arch), what)
    assert not stats.races
    used, conflict = figures(stats)
    print(f"{what} sm_{arch}: {used:.1%} of sector bytes used, bank-conflict factor {conflict:.2f}")
    assert used >= 0.9
    assert conflict <= CONFLICTS


CONFLICTS = 1.2


def figures(stats: Any) -> tuple[float, float]:
    """Useful part of the sectors and bank conflicts in a step of the loop.

    The weights, read once per program by each thread as it needs them, are left out with the rest of the prologue.
    """
    return loop_figures(stats, lines_of_functions(stats, STEP))


@pytest.mark.ptxemu
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("where", ["input", "weight"])
def test_infinity_stays_in_its_group_as_compiled(where: str, arch: int) -> None:
    """The cold branch runs: right, without a race, and the other groups equal in every bit."""
    problem = thin(4, 4, 8, (5, 7), padding=1, epilogue=BIAS_RELU)
    config = PackedGroupsConfig(pack=4, strip=4, block_m=32, tiles_per_program=2)
    tensors = make_tensors(problem)
    run_call(plan_call(problem, config), tensors, emulator(arch))
    clean = tensors["output"].clone()
    if where == "input":
        tensors["input"][0, 9, 2, 3] = math.inf
    else:
        tensors["weight"][9, 1, 1, 1] = -math.inf
    tensors["output"].fill_(math.nan)
    (stats,) = run_call(plan_call(problem, config), tensors, emulator(arch))
    assert not stats.races, stats.races[:3]
    others = [channel for channel in range(32) if channel // 4 != 2]
    assert torch.equal(tensors["output"][:, others], clean[:, others])
    check_output(problem, tensors, where)


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_compiles_well_by_default(arch: str) -> None:
    """ResNeXt-50 and ShuffleNet layers at their defaults: no spills, 16-byte accesses, instructions per output."""
    found = list(findings("packed_groups", [arch]))
    for finding in found:
        print(finding)
    assert len(found) >= 6
    assert {finding.layer: finding.faults for finding in found if finding.faults} == {}


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("pack", "strip"), [(2, 2), (4, 1)])
def test_the_branch_for_non_finite_values_does_not_set_the_registers(pack: int, strip: int, arch: str) -> None:
    """The branch is rarely taken, but a warp holds its registers all the time: with its taps unrolled 88 to 97 more."""
    problem = thin(8, 8, 32, (28, 28), padding=1, epilogue=BIAS_RELU)
    config = PackedGroupsConfig(block_m=32, pack=pack, strip=strip, tiles_per_program=1, max_registers=255)
    device = DeviceSpec.get(arch)

    def resources(isolate: bool) -> Resources:
        launch = plan_call(problem, replace(config, isolate=isolate)).launches[-1]
        return read_resources(compile_launch(launch, gpu_target(device)))

    with_branch, without = resources(True), resources(False)
    assert not with_branch.spill_bytes
    assert without.registers < with_branch.registers <= without.registers + 40


@pytest.mark.native
@pytest.mark.parametrize(("c", "k", "groups"), [(4, 4, 8), (3, 5, 7), (8, 2, 5)])
def test_random_sizes_on_the_native_lane(c: int, k: int, groups: int, native: ModuleType) -> None:
    run = Runner(native)
    for seed, size in enumerate([(5, 6), (9, 7), (1, 12), (14, 14)]):
        problem = thin(c, k, groups, size, padding=1, batch=1 + seed, dtype="float32", precision="ieee")
        judge(problem, one_warp(problem), run, str(problem), seed)
