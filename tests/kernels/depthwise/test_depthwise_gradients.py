"""Gradients of depthwise convolutions: interpreted against float64, compiled code executed and held to its gate."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from case import Case
from depthwise_cases import SHAPES, depthwise
from emulated import check_compiled
from gradient_oracle import gradient_tensors, gradients, run_gradient
from truth import ORDERS, judge

from grouped_conv.bench.gates.families import findings
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.families import KernelConfig, family_of
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.interpreting.interpreter import interpret_launch

INPUT = DepthwiseInputGradConfig(block_c=16, tile_h=2, tile_w=2, block_h=1, block_w=4, num_warps=1, pack_weight=False)
WEIGHT = DepthwiseWeightGradConfig(block_c=16, block_p=4, tile_h=1, tile_w=2, num_warps=1, splits=2)
NAME = {"input_grad": "input", "weight_grad": "weight"}

MORE_SHAPES: tuple[tuple[str, int, tuple[int, int], tuple[int, int], dict[str, Any]], ...] = (
    ("stride 2, even image", 16, (8, 10), (3, 3), {"stride": 2, "batch": 2}),
    ("stride 4", 16, (9, 11), (3, 3), {"stride": 4}),
    ("stride 3, dilation 2", 16, (10, 9), (3, 3), {"stride": 3, "dilation": 2, "padding": 2}),
    ("stride 2, dilation 2: odd pixels are not reached", 16, (9, 8), (3, 3), {"stride": 2, "dilation": 2}),
    ("stride 4, dilation 2", 16, (9, 13), (5, 5), {"stride": 4, "dilation": 2}),
    ("5x5, stride 2", 24, (9, 10), (5, 5), {"stride": 2}),
    ("7x7, stride 2, odd channels", 21, (9, 7), (7, 7), {"stride": 2}),
    ("1x1, stride 3", 16, (7, 8), (1, 1), {"stride": 3}),
    ("31x31, stride 2", 16, (9, 10), (31, 31), {"stride": 2}),
    ("multiplier 6 in parts", 5, (5, 4), (3, 3), {"multiplier": 6}),
    ("multiplier 4, odd channels", 11, (4, 5), (3, 3), {"multiplier": 4}),
)  # fmt: skip
EPILOGUES = (
    Epilogue(),
    Epilogue("relu"),
    Epilogue("silu", scale=True),
    Epilogue("none", scale=True),
    Epilogue("tanh"),
)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def configs(problem: ConvProblem) -> Iterator[KernelConfig]:
    """Every path through both kernels that can run the problem."""
    down, right = problem.stride
    m = problem.k_per_group
    part = next(p for p in (4, 2, 3, 1) if m % p == 0)
    yield replace(INPUT, tile_h=round_up(2, down), tile_w=round_up(3, right), multipliers=part, block_h=2)
    yield replace(INPUT, tile_h=2, tile_w=round_up(2, right), row_loop=True, pack_weight=True)
    yield replace(INPUT, tile_h=1, tile_w=round_up(3, right), row_loop=True, chunk=4, multipliers=part)
    high, wide = problem.out_size
    yield replace(WEIGHT, tile_w=min(3, wide), multipliers=part, splits=1)
    yield replace(WEIGHT, tile_h=min(2, high), tile_w=1, rows=1, columns=2)
    yield replace(WEIGHT, tile_w=min(2, wide), rows=2, splits=3, multipliers=part, block_p=1)


def invalid(problem: ConvProblem, config: KernelConfig) -> str | None:
    return family_of(config).why_invalid(problem, config)


def shape_cases() -> Iterator[Case]:
    dtypes = itertools.cycle(("float16", "bfloat16", "float32"))
    epilogues = itertools.cycle(EPILOGUES)
    for reason, channels, size, kernel, keywords in (*SHAPES, *MORE_SHAPES):
        shape = depthwise(channels, size, kernel, **keywords)
        for config in configs(shape):
            last = len(reason) % 2 == 0
            forward = replace(shape, dtype=next(dtypes), epilogue=next(epilogues), weight_channels_last=last)
            problem = gradient_problem(forward, config.direction)
            if invalid(problem, config) is None:
                yield Case(reason, problem, config)


def epilogue_cases() -> Iterator[Case]:
    epilogues = [Epilogue(a, scale=True, shuffle=1 + i % 2 * 2) for i, a in enumerate(ACTIVATIONS)]
    epilogues += [Epilogue("leaky_relu", negative_slope=slope) for slope in (0.2, -0.4)]
    for index, epilogue in enumerate(epilogues):
        multiplier = 1 + index % 3
        for config in (replace(INPUT, multipliers=multiplier), replace(WEIGHT, multipliers=multiplier)):
            shape = depthwise(12, (5, 4), (3, 3), multiplier, dtype="float32", epilogue=epilogue)
            shape = replace(shape, input_shuffle=4 if index % 2 else 1)
            yield Case(epilogue.activation, gradient_problem(shape, config.direction), config)


def cases() -> list[Case]:
    return [*shape_cases(), *epilogue_cases()]


FAST = 13
"""One case in so many runs always."""


def marked() -> list[Any]:
    return [
        pytest.param(case, id=case.id, marks=[] if index % FAST == 0 else [pytest.mark.sweep])
        for index, case in enumerate(cases())
    ]


@pytest.mark.parametrize("case", marked())
def test_agrees_with_float64(case: Case) -> None:
    judge(case.problem, case.config, interpret_launch, case.id)


@pytest.mark.parametrize("index", range(0, 60, 10))
def test_programs_in_any_order_give_the_same_bits(index: int) -> None:
    case = cases()[index + index // 10]
    name = f"grad_{NAME[case.problem.direction]}"
    assert torch.equal(*(judge(case.problem, case.config, run, case.id)[0][name] for run in ORDERS[:2]))


def test_an_infinity_stays_with_its_taps() -> None:
    """The last input column is met by the last output's taps alone, though a tile's rest would read it."""
    problem = gradient_problem(depthwise(16, (5, 7), (3, 3), dtype="float32", epilogue=Epilogue()), "weight_grad")
    tensors = gradient_tensors(problem)
    tensors["input"][0, 3, 4, 6] = float("inf")
    run_gradient(problem, replace(WEIGHT, tile_w=4, tile_h=2), tensors, interpret_launch)
    finite = gradients(problem, tensors)["weight"].isfinite()
    assert not finite.all()
    assert torch.equal(tensors["grad_weight"].isfinite(), finite)


def emulated() -> list[Any]:
    """Small kernels of both directions on both architectures in turn; the second half is left to the sweep."""
    small = [case for case in cases() if case.problem.taps <= 25][::9]
    chosen = list(zip(itertools.cycle((80, 90)), small, strict=False))
    half = len(chosen) // 2
    return [pytest.param(*one, marks=[pytest.mark.sweep] if i >= half else []) for i, one in enumerate(chosen)]


@pytest.mark.ptxemu
@pytest.mark.parametrize(("arch", "case"), emulated(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


@pytest.mark.full
@pytest.mark.parametrize(
    "arch", [*(pytest.param(arch, marks=pytest.mark.sweep) for arch in (*EVERY_RUN[1:], *SWEEP)), EVERY_RUN[0]]
)
def test_compiles_well(arch: str) -> None:
    families = ("depthwise_input_grad", "depthwise_weight_grad")
    found = [finding for family in families for finding in findings(family, [arch])]
    assert len(found) >= 10
    assert {f"{finding.layer} {finding.config}": finding.faults for finding in found if finding.faults} == {}
