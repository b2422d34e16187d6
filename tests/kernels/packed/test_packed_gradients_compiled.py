"""Gradients of thin groups as compiled: executed from their PTX, counted in their machine code."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from case import Case
from emulated import check_compiled, emulator
from gradient_oracle import gradient_tensors, run_gradient
from loop_figures import lines_of_functions, loop_figures
from packed_cases import STEP, thin
from packed_gradient_cases import activation_cases, shape_cases, shuffle_cases
from truth import judge

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.instructions import loops
from grouped_conv.autotune.machine_code.resources import disassembled, read_resources
from grouped_conv.autotune.model import families
from grouped_conv.autotune.model.packed.packs import MOST_CHANNELS
from grouped_conv.bench.gates.engine import judged_launches
from grouped_conv.bench.gates.families import GATES, findings
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP
from grouped_conv.bench.gates.rules import EPILOGUES, PLAIN
from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue
from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed.weight_grad_rules import PackedWeightGradConfig


def emulated_cases() -> list[tuple[int, Case]]:
    """Shapes, shuffles and activations, a part of each, on both architectures in turn with 1 and 2 warps.

    Exact fp32 is unrolled scalar multiplies on NVIDIA, minutes to assemble and to execute: TF32 stands in for it.
    """
    cases = [
        *itertools.islice(shape_cases(), 1, None, 5),
        *itertools.islice(shuffle_cases(), 0, None, 3),
        *itertools.islice(activation_cases(), 0, None, 3),
    ]
    variants = itertools.cycle([(80, 1), (90, 2), (80, 2), (90, 1)])
    return [
        (arch, replace(case, problem=replace(case.problem, precision="tf32"), config=replace(case.config, num_warps=w)))
        for case, (arch, w) in zip(cases, variants, strict=False)
    ]


@pytest.mark.ptxemu
@pytest.mark.parametrize(("arch", "case"), emulated_cases(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


ALIGNED = [
    ("4 per group", thin(4, 4, 8, (8, 14), padding=1), 4, 7),
    ("8 per group, stride 2", thin(8, 8, 4, (16, 16), padding=1, stride=2), 2, 4),
    ("shuffled output", thin(4, 4, 8, (8, 8), padding=1, epilogue=Epilogue("relu", shuffle=8)), 8, 4),
]


@pytest.mark.ptxemu
@pytest.mark.parametrize("arch", [80, pytest.param(90, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
@pytest.mark.parametrize(("what", "plain", "pack", "strip"), ALIGNED, ids=[row[0] for row in ALIGNED])
def test_aligned_problems_waste_no_sector(
    what: str, plain: ConvProblem, pack: int, strip: int, direction: str, arch: int
) -> None:
    problem = gradient_problem(plain, direction)
    if direction == "input_grad":
        config = PackedInputGradConfig(pack=pack, strip=min(strip, 4), block_m=16, num_warps=1)
    else:
        config = PackedWeightGradConfig(pack=pack, strip=strip, block_k=16, rows=1 if pack == 8 else 0)
    _, (stats, *_) = judge(problem, config, emulator(arch), what)
    assert not stats.races
    used, conflict = figures(stats)
    print(f"{direction} {what} sm_{arch}: {used:.1%} of sector bytes used, bank-conflict factor {conflict:.2f}")
    assert used == 1.0
    assert conflict <= 1.05


def figures(stats: Any) -> tuple[float, float]:
    """Useful part of the sectors of activations and bank conflicts in a step of the loop."""
    return loop_figures(stats, lines_of_functions(stats, STEP))


@pytest.mark.ptxemu
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("where", ["grad_output", "weight"])
def test_infinity_stays_in_its_group_as_compiled(where: str, arch: int) -> None:
    """The cold branch runs: without a race, and the other groups equal in every bit."""
    problem = gradient_problem(thin(4, 4, 8, (5, 7), padding=1), "input_grad")
    config = PackedInputGradConfig(pack=4, strip=4, block_m=32, tiles_per_program=2)
    clean, dirty = gradient_tensors(problem), gradient_tensors(problem)
    run_gradient(problem, config, clean, emulator(arch))
    if where == "weight":
        dirty["weight"][9, 1, 1, 1] = -math.inf
    else:
        dirty["grad_output"][0, 9, 2, 3] = math.inf
    (stats,) = run_gradient(problem, config, dirty, emulator(arch))
    assert not stats.races, stats.races[:3]
    others = [channel for channel in range(32) if channel // 4 != 2]
    assert torch.equal(dirty["grad_input"][:, others], clean["grad_input"][:, others])
    assert not dirty["grad_input"].isfinite().all()


@pytest.mark.full
@pytest.mark.parametrize("arch", EVERY_RUN)
def test_compiles_well_by_default(arch: str) -> None:
    """ResNeXt-50 and ShuffleNet layers at their defaults: no spills, 16-byte accesses, no atomics, few instructions."""
    faultless(arch, ["float16"], [PLAIN])


@pytest.mark.sweep
@pytest.mark.parametrize("arch", [*EVERY_RUN, *SWEEP])
def test_compiles_well_for_every_architecture(arch: str) -> None:
    faultless(arch, ["float16", "bfloat16"], EPILOGUES)


def faultless(arch: str, dtypes: Sequence[str], epilogues: Sequence[Epilogue]) -> None:
    def wanted(problem: ConvProblem) -> bool:
        return problem.dtype in dtypes and problem.epilogue in epilogues

    families = ("packed_input_grad", "packed_weight_grad")
    found = [finding for family in families for finding in findings(family, [arch], wanted)]
    for finding in found:
        print(finding)
    assert len(found) == 12 * (len(epilogues) + len(dtypes) - 1)
    assert {f"{f.family} {f.layer}": f.faults for f in found if f.faults} == {}


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_branch_for_non_finite_values_stays_a_loop(arch: str) -> None:
    """It has a loop of few instructions; with its taps unrolled the smallest had more than 200, and relu spilled."""
    problem = gradient_problem(thin(8, 8, 32, (28, 28), padding=1, batch=128, epilogue=Epilogue("relu")), "input_grad")
    config = PackedInputGradConfig(block_m=32, pack=2, strip=4, tiles_per_program=8, max_registers=255)
    device = DeviceSpec.get(arch)
    (launch,) = judged_launches(problem, config)
    kernel = compile_launch(launch, gpu_target(device))
    sizes = [len(loop) for loop in loops(disassembled(kernel)) if any(i.kind == "mma" for i in loop)]
    assert min(sizes) <= 100, sizes
    assert not read_resources(kernel).spill_bytes


MODELS = {direction: families.MODELS[f"packed_{direction}"] for direction in ("input_grad", "weight_grad")}
DEFAULTS = [
    thin(2, 2, 16, (14, 14), padding=1),
    thin(3, 5, 9, (9, 7), padding=1, stride=2, dtype="bfloat16"),
    thin(8, 8, 8, (14, 14), padding=1, dtype="float32", precision="ieee"),
    thin(16, 16, 8, (7, 7), (5, 5), padding=2, dtype="float32", precision="tf32"),
    thin(20, 60, 3, (14, 14), (1, 1)),
    thin(4, 4, 1, (3, 3), padding=1),
    thin(4, 4, 8, (28, 28), padding=1, epilogue=Epilogue("gelu", scale=True)),
]


@pytest.mark.parametrize("plain", DEFAULTS, ids=str)
@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("device", ["a100", "h100", "gfx942"])
def test_the_model_has_a_default_for_every_thin_layer(device: str, direction: str, plain: ConvProblem) -> None:
    problem, spec = gradient_problem(plain, direction), DeviceSpec.get(device)
    model: Any = MODELS[direction]
    configs = list(model.defaults(problem, spec))
    if max(plain.c_per_group, plain.k_per_group) > MOST_CHANNELS:
        assert not configs
        return
    assert configs
    for config in configs:
        family = family_of(config)
        assert family.why_invalid(problem, config) is None
        assert family.why_not_on(problem, config, spec) is None
        prediction = model.predict(problem, config, spec)
        assert 0 < prediction.weighed_us < 1e6


def test_the_space_begins_with_what_is_predicted_fastest() -> None:
    device = DeviceSpec.get("a100")
    for direction, model in MODELS.items():
        problem = GATES[f"packed_{direction}"][0].layers["rx50 stage 1"]
        space = model.ranked(problem, device)
        times = [model.predict(problem, config, device).weighed_us for config in space]
        assert len(space) > 20
        assert times == sorted(times)
