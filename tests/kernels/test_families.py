"""The table of families is complete, its rows fit their kernels, and other layers' tables have the same names."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import triton
from emulated import assert_sound
from truth import judge

from grouped_conv.autotune.model.families import MODELS
from grouped_conv.bench.gates.families import GATES
from grouped_conv.kernels import (
    ConvProblem,
    DeviceSpec,
    Epilogue,
    GroupLayout,
    ImplicitGemmConfig,
    LrnPoolProblem,
    PackConfig,
    SeparableProblem,
)
from grouped_conv.kernels.call import plan
from grouped_conv.kernels.families import CONFIGS, FAMILIES, Family, families_for, family_of, why_invalid
from grouped_conv.kernels.gradient_call import gradient_problem, plan_bias_gradient
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides
from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool
from grouped_conv.kernels.separable.forward import plan_separable_call

ROOT = Path(__file__).resolve().parents[2]
DIRECTIONS = {
    "forward": ["implicit_gemm", "packed_groups", "depthwise", "ragged", "separable", "lrn_pool"],
    "input_grad": ["input_grad", "packed_input_grad", "depthwise_input_grad", "ragged_input_grad"],
    "weight_grad": ["weight_grad", "packed_weight_grad", "depthwise_weight_grad", "ragged_weight_grad"],
}
DEPTHWISE = ConvProblem.of((1, 8, 5, 5), (8, 1, 3, 3), padding=1, groups=8)
UNEQUAL = replace(DEPTHWISE, layout=GroupLayout.sizes([5, 3], [4, 4]))
EXACT = [FAMILIES[name].config for name in ("depthwise", "depthwise_input_grad", "depthwise_weight_grad")]
"""Their products are taken in fp32, not by matrix instructions."""
PROBLEMS = (DEPTHWISE, UNEQUAL, SeparableProblem(DEPTHWISE, 16), LrnPoolProblem.of((1, 8, 5, 5)))


def problem_of(family: Family) -> ConvProblem | SeparableProblem | LrnPoolProblem:
    """The first of `PROBLEMS`, in the family's direction, that the family computes."""
    convolutions = [one for one in PROBLEMS if isinstance(one, ConvProblem)]
    gradients = [gradient_problem(one, family.direction) for one in convolutions]
    return next(one for one in (*PROBLEMS, *gradients) if family.name in families_for(one))


def test_the_table_has_every_family_with_its_direction() -> None:
    assert {name: family.direction for name, family in FAMILIES.items()} == {
        name: direction for direction, names in DIRECTIONS.items() for name in names
    }
    for name, family in FAMILIES.items():
        assert name == family.config.family
        assert family_of(family.config()) is family
        assert CONFIGS[name] is family.config


@pytest.mark.smoke
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_row_plans_the_kernel_of_its_name(family: Family) -> None:
    """So the planner that a row names exists, and takes what the row's rules accept."""
    problem = problem_of(family)
    config = family.one_warp(problem)
    assert type(config) is family.config
    assert why_invalid(problem, config) is None
    if isinstance(problem, LrnPoolProblem):
        shapes = {"input": problem.input_shape, "output": problem.output_shape}
        operands = {name: Operand(channels_last_strides(shape)) for name, shape in shapes.items()}
        assert family.plan(problem, config, operands) == plan_lrn_pool(problem, config, operands)
        launches = (family.plan(problem, config, operands),)
    elif isinstance(problem, SeparableProblem):
        launches, _ = plan_separable_call(problem, config)  # type: ignore[arg-type]
    else:
        launches = plan(problem, config).launches
    assert family.name in [launch.name for launch in launches]
    assert all(isinstance(launch.kernel, triton.runtime.JITFunction) for launch in launches)


def test_families_are_chosen_by_problem_direction_and_groups() -> None:
    uniform = ["implicit_gemm", "packed_groups", "depthwise"]
    assert [list(families_for(one)) for one in PROBLEMS] == [uniform, ["ragged"], ["separable"], ["lrn_pool"]]
    for direction in ("input_grad", "weight_grad"):
        assert list(families_for(gradient_problem(UNEQUAL, direction))) == [f"ragged_{direction}"]
        assert list(families_for(gradient_problem(DEPTHWISE, direction))) == [
            name for name in DIRECTIONS[direction] if name != f"ragged_{direction}"
        ]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_shared_refusals_reach_every_family(family: Family) -> None:
    problem = problem_of(family)
    config = family.one_warp(problem)
    if isinstance(problem, LrnPoolProblem):
        assert "more than the grid's 2147483647" in str(why_invalid(replace(problem, batch=2**38), config))
        return
    first = problem.first if isinstance(problem, SeparableProblem) else problem
    exact, many = replace(first, dtype="float32", precision="tf32"), replace(first, batch=2**38)
    wrong = replace(first, direction="input_grad" if family.direction == "forward" else "forward")
    if isinstance(problem, SeparableProblem):
        exact, many, wrong = (replace(problem, first=one) for one in (exact, many, wrong))
    assert f"not the direction {wrong.direction}" in str(why_invalid(wrong, config))
    told = why_invalid(exact, config, DeviceSpec.get("mi210"))
    assert told == (None if family.config in EXACT else "gfx90a has no TF32")
    if family.direction != "weight_grad":  # its programs do not depend on the batch
        assert "2147483647" in str(why_invalid(many, config))


def test_a_configuration_of_another_kind_of_problem_is_refused() -> None:
    lrn_pool = FAMILIES["lrn_pool"].config()
    assert why_invalid(DEPTHWISE, lrn_pool) == "lrn_pool computes a LrnPoolProblem, not a ConvProblem"
    with pytest.raises(ValueError, match="configures no family"):
        family_of(PackConfig())


@pytest.mark.smoke
def test_each_pass_has_a_configuration_of_its_own() -> None:
    """Its tag is the name of its kernel, but for `pack`, whose kernel says what it packs."""
    epilogue = Epilogue("relu", scale=True)
    shared = replace(DEPTHWISE, layout=GroupLayout.overlapping(8, 8, 2, 6), epilogue=epilogue)
    thin = gradient_problem(replace(DEPTHWISE, epilogue=epilogue, weight_channels_last=False), "weight_grad")
    calls = [
        plan(replace(DEPTHWISE, input_channels_last=False), ImplicitGemmConfig(block_k=16)),
        plan(ConvProblem.of((1, 64, 5, 5), (8, 64, 3, 3)), ImplicitGemmConfig(block_k=16, split_k=2)),
        plan(thin, WeightGradConfig(pixel_table=True)),
        *(plan(gradient_problem(shared, d), FAMILIES[f"ragged_{d}"].config()) for d in ("input_grad", "weight_grad")),
        plan_bias_gradient(thin),
    ]
    passes = {
        launch.name: launch.config.family for call in calls for launch in call.launches if launch.name not in FAMILIES
    }
    assert passes == {name: name for name in passes} | {"pack_channels_last": "pack"}
    ours = {tag for tag, config in CONFIGS.items() if config.__module__.startswith("grouped_conv.kernels.")}
    assert passes.keys() | FAMILIES.keys() == (ours | {"pack_channels_last"}) - {"pack"}
    assert len({CONFIGS[tag] for tag in passes.values()}) == len(passes)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_result_that_is_not_written_is_noticed(family: Family) -> None:
    problem = problem_of(family)
    with pytest.raises(AssertionError):
        judge(problem, family.one_warp(problem), lambda launch, tensors: None)


def test_races_and_addresses_written_twice_are_noticed() -> None:
    clean = SimpleNamespace(races=[], buffers={"y": {"rewritten": 0}})
    assert_sound([clean])
    for fault in ({"races": ["y[0]"]}, {"buffers": {"y": {"rewritten": 1}}}):
        with pytest.raises(AssertionError):
            assert_sound([clean, SimpleNamespace(**(vars(clean) | fault))])


def test_models_and_gates_have_the_same_names() -> None:
    assert list(MODELS) == list(FAMILIES)
    assert GATES.keys() == FAMILIES.keys()


def test_who_reads_configurations_has_every_class() -> None:
    """`KernelConfig.from_json` knows the classes that are loaded, so its callers must load the table."""
    for folder in ("autotune", "grouped_conv", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            if "KernelConfig.from_json" in text:
                assert re.search(r"from grouped_conv\.kernels(\.families)? import .*\bKernelConfig\b", text), path
