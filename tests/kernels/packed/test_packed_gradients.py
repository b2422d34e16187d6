"""Gradients of thin groups, interpreted: right in every shape, the same in any order of programs, groups kept apart.

What the compiled code does is in `test_packed_gradients_compiled.py`.
"""

import math
from dataclasses import replace

import pytest
import torch
from case import Case
from gradient_oracle import gradient_tensors, run_gradient
from packed_cases import thin
from packed_gradient_cases import (
    ACTIVATIONS,
    activation_cases,
    group_leaders,
    packed_input_grad_cases,
    shape_cases,
    shuffle_cases,
)
from truth import ORDERS, judge

from grouped_conv.kernels import ConvProblem, DeviceSpec
from grouped_conv.kernels.families import KernelConfig, family_of
from grouped_conv.kernels.gradient_call import gradient_problem, plan_gradient
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed.input_grad_rules import one_warp as one_warp_input
from grouped_conv.kernels.packed.weight_grad_rules import PackedWeightGradConfig
from grouped_conv.kernels.packed.weight_grad_rules import one_warp as one_warp_weight


def check(case: Case) -> None:
    judge(case.problem, case.config, interpret_launch, case.id)


@pytest.mark.parametrize("case", shape_cases(), ids=lambda case: case.id)
def test_every_shape(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", shuffle_cases(), ids=lambda case: case.id)
def test_shuffled_input_and_output(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", activation_cases(), ids=lambda case: case.id)
def test_activations_and_scale_are_in_the_load(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", packed_input_grad_cases(), ids=lambda case: case.id)
def test_packs_of_the_implicit_input_gradient(case: Case) -> None:
    check(case)


@pytest.mark.sweep
@pytest.mark.parametrize("case", shape_cases(every=True), ids=lambda case: case.id)
def test_every_shape_with_every_configuration(case: Case) -> None:
    check(case)


@pytest.mark.sweep
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_in_both_directions(activation: str) -> None:
    for case in activation_cases(every=True):
        if case.problem.epilogue.activation == activation:
            check(case)


ORDERED = [
    PackedWeightGradConfig(pack=2, block_k=16, strip=2, rows=2, splits=2),
    PackedInputGradConfig(pack=2, block_m=16, strip=2, tiles_per_program=1),
]


@pytest.mark.parametrize("config", ORDERED, ids=lambda config: config.family)
def test_any_order_of_programs_gives_the_same_bits(config: KernelConfig) -> None:
    direction = config.family.removeprefix("packed_")
    problem = gradient_problem(thin(4, 4, 5, (7, 9), padding=1, stride=2, batch=2), direction)
    grids = {launch.name: launch.grid for launch in plan_gradient(problem, config).launches}
    assert math.prod(grids[config.family]) > 1
    name = "grad_" + direction.removesuffix("_grad")
    assert torch.equal(*(judge(problem, config, run)[0][name] for run in ORDERS[:2]))


LEAKS = [
    (PackedWeightGradConfig(pack=4, block_k=16, strip=2), "grad_output"),
    (PackedWeightGradConfig(pack=4, block_k=16, strip=2), "input"),
    (PackedInputGradConfig(pack=4, block_m=16, strip=2, tiles_per_program=2), "grad_output"),
    (PackedInputGradConfig(pack=4, block_m=16, strip=2, tiles_per_program=2), "weight"),
    (InputGradConfig(pack=4, block_m=16, block_n=16, block_k=16), "grad_output"),
    (InputGradConfig(pack=4, block_m=16, block_n=16, block_k=16), "weight"),
    (InputGradConfig(pack=4, block_m=16, block_n=16, block_k=16), "grad_output"),
]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(("config", "where"), LEAKS, ids=[f"{c.family}-{c}-{w}".replace(" ", "-") for c, w in LEAKS])
def test_a_value_that_is_not_finite_stays_in_its_group(config: KernelConfig, where: str, value: float) -> None:
    """The other groups keep every bit; the group itself shows it."""
    direction = config.family.removeprefix("packed_")
    problem = gradient_problem(thin(4, 4, 6, (5, 7), padding=1, stride=(2, 1)), direction)
    clean, dirty = gradient_tensors(problem), gradient_tensors(problem)
    run_gradient(problem, config, clean, interpret_launch)
    if where == "weight":
        dirty["weight"][9, 1, 1, 1] = value
    else:
        dirty[where][0, 9, 1, 3] = value
    run_gradient(problem, config, dirty, interpret_launch)
    name = "grad_" + direction.removesuffix("_grad")
    groups = group_leaders(problem, direction)
    others = [channel for channel, group in enumerate(groups) if group != 2]
    axis = 1 if direction == "input_grad" else 0
    assert torch.equal(dirty[name].index_select(axis, torch.tensor(others)),
                       clean[name].index_select(axis, torch.tensor(others)))  # fmt: skip
    assert not dirty[name].isfinite().all()


@pytest.mark.parametrize("pack", [1, 2])
def test_infinity_reaches_no_pixel_that_has_no_tap_on_it(pack: int) -> None:
    """Classes of a stride have fewer taps than the largest one; a strip's pixels read different columns."""
    problem = gradient_problem(thin(4, 4, 4, (9, 9), padding=1, stride=2), "input_grad")
    config = PackedInputGradConfig(pack=pack, block_m=16, strip=2, tiles_per_program=1)
    tensors = gradient_tensors(problem)
    tensors["grad_output"][0, 5, 2, 2] = math.inf
    run_gradient(problem, config, tensors, interpret_launch)
    high, wide = torch.nonzero(~tensors["grad_input"][0].isfinite().all(0), as_tuple=True)
    assert {*high.tolist()} == {3, 4, 5}
    assert {*wide.tolist()} == {3, 4, 5}


def test_pixels_without_a_tap_are_zero() -> None:
    problem = gradient_problem(thin(4, 2, 3, (9, 13), (2, 2), stride=(3, 5)), "input_grad")
    tensors = gradient_tensors(problem)
    run_gradient(problem, PackedInputGradConfig(pack=2, block_m=16, strip=2), tensors, interpret_launch)
    assert not tensors["grad_input"][:, :, 2::3].any()
    assert not tensors["grad_input"][:, :, :, 2::5].any()


@pytest.mark.parametrize("shape", [(3, 7, 5), (16, 16, 2), (20, 60, 3), (1, 1, 20)], ids=str)
def test_one_warp_runs_anything_thin(shape: tuple[int, int, int]) -> None:
    c, k, groups = shape
    for direction, one_warp in (("input_grad", one_warp_input), ("weight_grad", one_warp_weight)):
        problem = gradient_problem(thin(c, k, groups, (4, 5), padding=1, dtype="bfloat16"), direction)
        check(Case("one warp", problem, one_warp(problem)))


WEIGHT = gradient_problem(thin(4, 4, 8, (8, 8), padding=1), "weight_grad")
INPUT = gradient_problem(thin(4, 4, 8, (8, 8), padding=1), "input_grad")
FEW_WEIGHT = gradient_problem(thin(4, 4, 4, (8, 8), padding=1), "weight_grad")
FEW_INPUT = gradient_problem(thin(4, 4, 4, (8, 8), padding=1), "input_grad")
REFUSED = [
    (INPUT, PackedWeightGradConfig(), "computes the weight's gradient"),
    (WEIGHT, PackedInputGradConfig(), "computes the input's gradient"),
    (WEIGHT, PackedWeightGradConfig(pack=32), "128 channels wide"),
    (INPUT, PackedInputGradConfig(pack=32), "128 channels wide"),
    (FEW_WEIGHT, PackedWeightGradConfig(pack=8), "more than twice"),
    (FEW_INPUT, PackedInputGradConfig(pack=8), "more than twice"),
    (WEIGHT, PackedWeightGradConfig(strip=15), "unrolled products"),
    (INPUT, PackedInputGradConfig(strip=15), "unrolled products"),
    (WEIGHT, PackedWeightGradConfig(splits=9), "splits=9 are more than the 2 steps"),
]


@pytest.mark.parametrize(("problem", "config", "reason"), REFUSED)
def test_reasons_against_a_configuration(problem: ConvProblem, config: KernelConfig, reason: str) -> None:
    found = family_of(config).why_invalid(problem, config)
    assert found is not None
    assert reason in found


def test_reasons_against_a_device() -> None:
    wide = gradient_problem(thin(16, 16, 8, (8, 8), padding=1), "weight_grad")
    family = family_of(PackedWeightGradConfig())
    spills = PackedWeightGradConfig(pack=4, num_warps=1)
    assert "accumulators per thread spill" in str(family.why_not_on(wide, spills, DeviceSpec.get("sm_80")))
    large = PackedWeightGradConfig(pack=4, num_warps=4, rows=1)
    assert family.why_not_on(wide, large, DeviceSpec.get("sm_80")) is None
    assert "asynchronous product" in str(family.why_not_on(wide, large, DeviceSpec.get("sm_90")))
    family = family_of(PackedInputGradConfig())
    large = PackedInputGradConfig(pack=4, num_warps=4, block_m=64, strip=1)
    thin_ = gradient_problem(wide, "input_grad")
    assert family.why_not_on(thin_, large, DeviceSpec.get("sm_80")) is None
    assert "asynchronous product" in str(family.why_not_on(thin_, large, DeviceSpec.get("sm_90")))
    many = PackedInputGradConfig(pack=4, num_warps=1, block_m=64, strip=4)
    assert "accumulators per thread spill" in str(family.why_not_on(thin_, many, DeviceSpec.get("sm_80")))


@pytest.mark.parametrize(
    "wrong", [{"pack": 0}, {"strip": 0}, {"num_stages": 2}, {"max_registers": 256}], ids=lambda wrong: next(iter(wrong))
)
@pytest.mark.parametrize("config", ORDERED, ids=lambda config: config.family)
def test_impossible_configurations(config: KernelConfig, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        replace(config, **wrong)


def test_an_empty_batch_has_a_gradient_of_zero() -> None:
    problem = gradient_problem(thin(4, 4, 4, (5, 5), padding=1, batch=0), "weight_grad")
    call = plan_gradient(problem, PackedWeightGradConfig(pack=4))
    assert call.launches[0].grid[0] == 1
