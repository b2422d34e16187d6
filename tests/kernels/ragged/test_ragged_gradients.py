"""The gradients of unequal, overlapping and listed groups: interpreted and compiled, against float64 per group."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from case import Case
from conv_oracle import run_call
from emulated import check_compiled, emulator
from loop_figures import lines_of, loop_figures, wider_than_words
from ragged_cases import DTYPES, LAYOUTS, WINDOWS
from ragged_gradient_oracle import check_ragged_gradient, ragged_gradient_tensors, run_ragged_gradient
from ragged_oracle import ragged_problem
from triton.backends.compiler import GPUTarget
from truth import ORDERS, judge

from grouped_conv.autotune.model.families import MODELS, models_for
from grouped_conv.bench.gates.families import findings
from grouped_conv.bench.gates.findings import EVERY_RUN
from grouped_conv.call_values.ragged_weights import views
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, DeviceSpec, Epilogue, GroupLayout, KernelConfig
from grouped_conv.kernels.device_code import gradient
from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.gradient_call import gradient_problem, plan_gradient
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.ragged import input_grad, weight_grad
from grouped_conv.kernels.ragged.forward_rules import weight_elements
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig, readers, shares_channels
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig, reduce_table
from grouped_conv.planning.steps import operand_of

MORE = {
    "unread runs between consecutive groups": GroupLayout.explicit(
        24, [range(2, 6), range(9, 17), range(17, 18)], [8, 3, 5], allow_unread=True
    ),
    "unread among shared channels": GroupLayout.explicit(16, [range(8), [3, 12, 5]], [8, 4], allow_unread=True),
    "one channel per group": GroupLayout.explicit(5, [[4], [2], [0], [1], [3]], [1, 3, 2, 1, 1]),
}
ALL = LAYOUTS | MORE
INPUT_CONFIGS = (
    RaggedInputGradConfig(block_m=32, block_n=16, block_k=16, num_stages=2),
    RaggedInputGradConfig(block_m=64, block_n=32, block_k=32, num_stages=3),
    RaggedInputGradConfig(block_m=16, block_n=64, block_k=64, num_stages=1),
)
WEIGHT_CONFIGS = (
    RaggedWeightGradConfig(block_m=16, block_n=32, block_k=16, num_stages=2, splits=2),
    RaggedWeightGradConfig(block_m=32, block_n=64, block_k=16, num_stages=3),
    RaggedWeightGradConfig(block_m=64, block_n=16, block_k=32, num_stages=1),
)


def cases(repeats: int = 2) -> Iterator[Case]:
    """Every layout with `repeats` windows, both directions; dtypes, epilogues and tiles rotate through them."""
    dtypes, windows = itertools.cycle(DTYPES), itertools.cycle([w for w in WINDOWS if "7x7" not in w[0]])
    activations = itertools.cycle(ACTIVATIONS)
    chosen = zip(itertools.cycle(INPUT_CONFIGS), itertools.cycle(WEIGHT_CONFIGS), strict=True)
    scaled = itertools.cycle((False, True, True))
    for (name, layout), turn in itertools.product(ALL.items(), range(repeats)):
        (what, size, kernel, keywords), (dtype, precision) = next(windows), next(dtypes)
        epilogue = Epilogue(next(activations), scale=next(scaled))
        problem = ragged_problem(
            layout, size, kernel, batch=1 + turn % 2, dtype=dtype, precision=precision, epilogue=epilogue, **keywords
        )
        for direction, config in zip(("input_grad", "weight_grad"), next(chosen), strict=True):
            yield Case(f"{name}, {what}", gradient_problem(problem, direction), fitting(problem, config))


def fitting(problem: ConvProblem, config: KernelConfig) -> KernelConfig:
    """No more splits than there are steps."""
    pixels = problem.batch * problem.out_size[0] * problem.out_size[1]
    if isinstance(config, RaggedWeightGradConfig):
        return replace(config, splits=max(1, min(config.splits, -(-pixels // config.block_k))))
    return config


@pytest.mark.parametrize("case", list(cases(1)), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    judge(case.problem, case.config, interpret_launch, case.id)


@pytest.mark.sweep
@pytest.mark.parametrize("case", list(cases(5)), ids=lambda case: case.id)
def test_agrees_with_float64_in_more_windows(case: Case) -> None:
    judge(case.problem, case.config, interpret_launch, case.id)


def test_the_table_is_long_enough() -> None:
    assert len(list(cases(1))) >= 40


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("name", ["log series, alignment 2", "unread among shared channels"])
def test_strides_larger_than_the_kernel(name: str, stride: int) -> None:
    problem = ragged_problem(ALL[name], (9, 10), (2, 2), stride=(stride, stride), dilation=(1, 2), dtype="float32")
    for direction, config in zip(("input_grad", "weight_grad"), (INPUT_CONFIGS[0], WEIGHT_CONFIGS[2]), strict=True):
        judge(gradient_problem(problem, direction), config, interpret_launch, f"{name}, stride {stride}")


@pytest.mark.parametrize("name", ["log series, alignment 2", "overlap, all groups read nearly all"])
def test_the_order_of_programs_does_not_matter(name: str) -> None:
    epilogue = Epilogue("silu", scale=True)
    problem = ragged_problem(ALL[name], (6, 5), padding=(1, 1, 1, 1), stride=(2, 1), dtype="float32", epilogue=epilogue)
    for direction, config in (("input_grad", INPUT_CONFIGS[0]), ("weight_grad", WEIGHT_CONFIGS[0])):
        asked = gradient_problem(problem, direction)
        results = [judge(asked, fitting(asked, config), run, name)[0] for run in ORDERS[:2]]
        for name_of_gradient in ("grad_input", "grad_weight", "grad_scale"):
            first, second = (result[name_of_gradient].nan_to_num(7.0) for result in results)
            assert torch.equal(first, second)


def test_any_strides() -> None:
    """An input's gradient with channels outermost, and operands that are slices of larger tensors."""
    for name in ("odd sizes, alignment 1", "random lists of unequal lengths", "overlap, aligned"):
        problem = ragged_problem(ALL[name], (6, 5), padding=(1, 1, 1, 1), dtype="float32", epilogue=Epilogue("relu"))
        asked = gradient_problem(problem, "input_grad")
        tensors = ragged_gradient_tensors(asked)
        for operand in ("grad_output", "known"):
            n, c, h, w = tensors[operand].shape
            room = torch.full((n, h + 1, w + 2, c + 3), float("nan"))
            view = room[:, 1:, 2:, :c].permute(0, 3, 1, 2)
            view.copy_(tensors[operand])
            tensors[operand] = view
        tensors["grad_input"] = torch.full(problem.input_shape, float("nan"))
        run_ragged_gradient(asked, INPUT_CONFIGS[0], tensors, interpret_launch)
        check_ragged_gradient(asked, tensors, "input", name)


def test_planned_from_tensors() -> None:
    """The launches for tensors, some of them not aligned; `grad_weight` is seen through the views of its buckets."""
    layout = LAYOUTS["log series, alignment 2"]
    forward = ragged_problem(layout, (6, 5), padding=(1, 1, 1, 1), epilogue=Epilogue("relu", scale=True, bias=True))
    problem = gradient_problem(forward, "weight_grad")
    tensors = ragged_gradient_tensors(problem)
    room = torch.empty(tensors["grad_output"].numel() + 1, dtype=torch.float16)
    moved = room[1:].view(tensors["grad_output"].permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    tensors["grad_output"] = moved.copy_(tensors["grad_output"])
    operands = {name: operand_of(tensor) for name, tensor in tensors.items()}
    call = plan_gradient(problem, WEIGHT_CONFIGS[2], operands, grad_scale=True)
    assert next(b for b in call.launches[0].buffers if b.name == "grad_output").alignment < 16
    tensors |= {name: torch.from_numpy(values) for name, values in call.tables.items()}
    run_call(call, tensors, interpret_launch)
    check_ragged_gradient(problem, tensors, "weight")
    check_ragged_gradient(problem, tensors, "scale")
    assert not any(view.isnan().any() for view in views(tensors["grad_weight"], layout, (3, 3)))


def test_an_empty_batch_has_a_weight_gradient_of_zero() -> None:
    problem = gradient_problem(ragged_problem(LAYOUTS["overlap, aligned"], batch=0), "weight_grad")
    tensors = ragged_gradient_tensors(problem)
    run_ragged_gradient(problem, WEIGHT_CONFIGS[2], tensors, interpret_launch)
    assert not tensors["grad_weight"].any()


def test_launches() -> None:
    """A second pass for groups that share channels, and always one for weights."""
    for name, layout in ALL.items():
        problem = ragged_problem(layout)
        calls = [
            plan_gradient(gradient_problem(problem, direction), config)
            for direction, config in (("input_grad", INPUT_CONFIGS[0]), ("weight_grad", WEIGHT_CONFIGS[2]))
        ]
        names = [tuple(launch.name for launch in call.launches) for call in calls]
        assert names[0] == ("ragged_input_grad",) + ("ragged_gather",) * shares_channels(layout), name
        assert names[1] == ("ragged_weight_grad", "ragged_weight_reduce"), name
        if not shares_channels(layout):  # every channel is written by one row
            written = [channel for reader in readers(layout, 9) for channel in reader.inputs]
            assert sorted(written) == list(range(layout.in_channels)), name
        rows = reduce_table(problem)
        assert rows[:, 1:].sum() == weight_elements(problem.layout, problem.taps), name


@pytest.mark.parametrize("change", ["direction", "uniform", "shuffle"])
def test_refusals(change: str) -> None:
    layout = GroupLayout.uniform(8, 8, 2) if change == "uniform" else LAYOUTS["lists backwards"]
    problem = ragged_problem(layout, epilogue=Epilogue(shuffle=2 if change == "shuffle" else 1))
    for direction, other, config in (
        ("input_grad", "weight_grad", INPUT_CONFIGS[0]),
        ("weight_grad", "input_grad", WEIGHT_CONFIGS[0]),
    ):
        with pytest.raises(ValueError, match="cannot run"):
            plan_gradient(gradient_problem(problem, other if change == "direction" else direction), config)


def test_no_gradient_of_a_scale_that_is_not_there() -> None:
    problem = gradient_problem(ragged_problem(LAYOUTS["lists backwards"]), "weight_grad")
    with pytest.raises(ValueError, match="has no scale"):
        plan_gradient(problem, WEIGHT_CONFIGS[2], grad_scale=True)


def emulated() -> list[tuple[int, Case]]:
    """Odd layouts on both architectures in turn, with 1 to 3 stages, 4 and 8 warps, small and wgmma-sized tiles."""
    variants = itertools.cycle(itertools.product((80, 90), (1, 2, 3), (4, 8)))
    found = []
    for case, (arch, stages, warps) in zip(cases(1), variants, strict=False):
        tile = {"block_m": 64} if arch == 90 else {}
        config = replace(case.config, num_stages=stages, num_warps=warps, **tile)
        found.append((arch, replace(case, config=config)))
    return found


@pytest.mark.ptxemu
@pytest.mark.parametrize(
    ("arch", "case"),
    [row if i % 3 == 0 else pytest.param(*row, marks=pytest.mark.sweep) for i, row in enumerate(emulated())],
    ids=lambda value: getattr(value, "id", value),
)
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


@pytest.mark.parametrize("arch", [80, 90])
def test_no_atomic_instructions(arch: int) -> None:
    problem = ragged_problem(LAYOUTS["overlap, aligned"], padding=(1, 1, 1, 1), epilogue=Epilogue("relu", scale=True))
    for direction, config in (("input_grad", INPUT_CONFIGS[1]), ("weight_grad", WEIGHT_CONFIGS[2])):
        for launch in plan_gradient(gradient_problem(problem, direction), config).launches:
            ptx = compile_launch(launch, GPUTarget("cuda", arch, 32)).asm["ptx"]
            assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", ptx, re.MULTILINE), launch.name


ALIGNED = {
    "log series": GroupLayout.log_series(128, 128, 4),
    "overlap": GroupLayout.overlapping(64, 96, groups=3, width=32),
    "listed runs of 16": GroupLayout.explicit(48, [[*range(32, 48), *range(16)], [*range(16, 32)]], [64, 32]),
}


def figures(stats: Any) -> tuple[float, float]:
    """Useful part of the sectors and bank conflicts of the loop's copies, but not of the index list's one load."""
    lines = lines_of(stats, input_grad, weight_grad, gradient)
    return loop_figures(stats, lines, lambda access: access.startswith("cp.async"), wider_than_words)


@pytest.mark.ptxemu
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
def test_aligned_loops_waste_no_sector_and_meet_no_bank_twice(direction: str, name: str, arch: int) -> None:
    problem = gradient_problem(ragged_problem(ALIGNED[name], (9, 9), padding=(1, 1, 1, 1)), direction)
    config: KernelConfig = RaggedInputGradConfig(block_m=64, block_n=64, block_k=64, num_stages=3)
    if direction == "weight_grad":
        config = RaggedWeightGradConfig(block_m=64, block_n=64, block_k=32, num_stages=3)
    _, (stats, *_) = judge(problem, config, emulator(arch), name)
    useful, conflict = figures(stats)
    print(f"{direction}, {name}, sm_{arch}: {useful:.1%} of sector bytes used, bank-conflict factor {conflict:.2f}")
    assert not stats.races
    assert useful == 1.0
    assert conflict <= 1.1


@pytest.mark.sweep
@pytest.mark.parametrize("arch", EVERY_RUN)
@pytest.mark.parametrize("family", ["ragged_input_grad", "ragged_weight_grad"])
def test_compiles_well(family: str, arch: str) -> None:
    found = list(findings(family, [arch]))
    assert {finding.layer: finding.faults for finding in found if finding.faults} == {}


@pytest.mark.parametrize("device", ["a100", "h100", "mi300x"])
def test_models_answer_for_every_layout(device: str) -> None:
    spec = DeviceSpec.get(device)
    for name, layout in ALL.items():
        problem = ragged_problem(layout, (14, 14), batch=8, padding=(1, 1, 1, 1))
        for direction in ("input_grad", "weight_grad"):
            model = MODELS[f"ragged_{direction}"]
            asked = gradient_problem(problem, direction)
            found = list(model.defaults(asked, spec))
            assert found, name
            for config in found:
                assert family_of(config).why_invalid(asked, config) is None, name
                prediction = model.predict(asked, config, spec)
                assert prediction.us > prediction.floor_us > 0
                assert prediction.bound in prediction.terms
    assert len(model.ranked(asked, spec)) > 10
    plain = ragged_problem(GroupLayout.uniform(8, 8, 2))
    assert "ragged" not in models_for(plain)
