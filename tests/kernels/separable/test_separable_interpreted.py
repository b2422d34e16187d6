"""The fused kernel in Triton's interpreter, called as a user calls it, against float64. The path is asserted."""

import pytest
import torch
from case import Case
from conv_oracle import relative_error
from separable_cases import (
    RELU,
    RESIDUAL,
    SHAPES,
    block,
    check_separable,
    separable_tensors,
    shape_cases,
    two_steps,
)
from torch import Tensor

import grouped_conv
from grouped_conv import separable_conv2d
from grouped_conv.autotune.model import fusion
from grouped_conv.call_values.memory_formats import empty_output
from grouped_conv.kernels import ACTIVATIONS, Epilogue
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, slices_of
from grouped_conv.kernels.separable.problem import SeparableProblem


def convolve(problem: SeparableProblem, tensors: dict[str, Tensor]) -> Tensor:
    """The problem as one call of the public function."""
    first, second = problem.first, problem.epilogue
    return separable_conv2d(
        tensors["input"],
        tensors["weight"],
        tensors["pointwise_weight"],
        tensors.get("bias"),
        tensors.get("pointwise_bias"),
        first.stride,
        first.padding,
        first.dilation,
        first.groups,
        activation=first.epilogue.activation,
        pointwise_activation=second.activation,
        scale=tensors.get("scale"),
        pointwise_scale=tensors.get("pointwise_scale"),
        residual=tensors.get("residual"),
        precision=first.precision if problem.dtype == "float32" else None,
        negative_slope=first.epilogue.negative_slope,
        pointwise_negative_slope=second.negative_slope,
    )


def run(problem: SeparableProblem, config: SeparableConfig, tensors: dict[str, Tensor]) -> Tensor:
    """Interpret the problem with `config`; the fused kernel must have run, and nothing else but pack passes."""
    with grouped_conv.interpret(config), grouped_conv.trace() as calls:
        y = convolve(problem, tensors)
    (call,) = calls
    assert call.path == "separable", call
    assert (call.config, call.source) == (config, "given")
    first = problem.first
    packs = (not first.input_channels_last and first.in_channels > 1 and first.in_size != (1, 1)) + (
        not first.weight_channels_last and first.c_per_group > 1 and first.taps > 1
    )  # what lies as the kernel reads it is not moved
    assert call.launches == ("pack_channels_last",) * packs + ("separable",), call
    return y


@pytest.mark.parametrize("case", list(shape_cases()), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    tensors = separable_tensors(case.problem)
    tensors["output"] = run(case.problem, case.config, tensors)
    hidden = empty_output(tensors["input"], tensors["weight"], case.problem.first.output_shape)
    expected = empty_output(hidden, tensors["pointwise_weight"], case.problem.output_shape)
    assert tensors["output"].stride() == expected.stride(), "the operator's fake implementation promises these"
    check_separable(case.problem, tensors, case.id)


def test_there_are_enough_cases() -> None:
    cases = list(shape_cases())
    assert len(cases) >= 60
    assert {case.config.method for case in cases} == {"direct", "dot"}
    cuts = [slices_of(case.problem, case.config) for case in cases]
    assert {cut.pack > 1 for cut in cuts} == {cut.parts > 1 for cut in cuts} == {cut.steps > 1 for cut in cuts}
    assert len(SHAPES) == len({case.reason for case in cases})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 12])
def test_activations_between_and_behind(activation: str, groups: int) -> None:
    for dtype in ("float32", "bfloat16"):
        problem = block(
            (1, 12, 5, 4),
            (12, 12 // groups, 3, 3),
            10,
            Epilogue(activation, bias=True, scale=True, negative_slope=0.3),
            Epilogue(activation, bias=True, scale=True, residual=True, negative_slope=0.2),
            dtype=dtype,
        )
        tensors = separable_tensors(problem)
        tensors["output"] = run(problem, SeparableConfig(block_m=32, block_n=16, width=16, block_k=16), tensors)
        check_separable(problem, tensors, activation)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    ("weight", "method", "dtype", "activation"),
    [
        ((16, 4, 3, 3), "dot", "float16", "relu"),
        ((16, 1, 3, 3), "dot", "bfloat16", "relu6"),
        ((16, 1, 3, 3), "direct", "float32", "relu"),
        ((30, 3, 3, 3), "dot", "float32", "relu6"),
        ((24, 8, 3, 3), "dot", "float16", "none"),
        ((20, 16, 3, 3), "dot", "bfloat16", "relu"),
    ],
)
def test_one_groups_infinity_reaches_only_what_torch_says(
    value: float, weight: tuple[int, ...], method: str, dtype: str, activation: str
) -> None:
    """Zero weights between the groups of a pack would make NaN of it, and the 1x1 convolution spreads NaN.

    A relu6 takes infinities away: then all of torch's output is finite, and ours must be.
    """
    channels = 15 if weight[1] == 3 else 16
    first = Epilogue(activation, bias=True)
    problem = block((1, channels, 6, 6), weight, 9, first, Epilogue("relu", bias=True), dtype=dtype)
    tensors = separable_tensors(problem)
    tensors["input"][0, 5, 2, 3] = value
    config = SeparableConfig(block_m=32, block_n=16, width=16, block_k=16, method=method)
    y = run(problem, config, tensors)
    exact = two_steps(problem, tensors, torch.float64)
    theirs = two_steps(problem, tensors, getattr(torch, dtype))
    assert bool(exact.isfinite().all()) == (activation == "relu6" and value == value)
    assert torch.equal(y.isnan(), exact.isnan())
    assert relative_error(y, exact) <= 2 * relative_error(theirs, exact) + torch.finfo(y.dtype).eps


@pytest.mark.parametrize("method", ["direct", "dot"])
def test_an_infinity_that_relu_removes_leaves_the_output_finite(method: str) -> None:
    """-Inf through positive weights and ReLU is 0 in torch: no NaN may come of it in the other groups."""
    per_group = 1 if method == "direct" else 2
    problem = block((1, 16, 7, 7), (16, per_group, 3, 3), 12, RELU, RELU)
    tensors = separable_tensors(problem)
    tensors["weight"] = tensors["weight"].abs() + 0.01
    tensors["input"][0, 4, 3, 3] = float("-inf")
    exact = two_steps(problem, tensors, torch.float64)
    assert exact.isfinite().all()
    tensors["output"] = run(problem, SeparableConfig(block_m=32, block_n=16, width=16, method=method), tensors)
    check_separable(problem, tensors)


@pytest.mark.parametrize("where", ["weight", "pointwise_weight", "bias", "pointwise_bias", "residual"])
def test_infinities_of_other_operands(where: str) -> None:
    problem = block((1, 24, 6, 5), (24, 3, 3, 3), 20, RELU, RESIDUAL, dtype="float32")
    tensors = separable_tensors(problem)
    place = {1: (3,), 4: (0, 1, 0, 0)}[tensors[where].dim()]
    tensors[where][place] = float("inf")
    exact = two_steps(problem, tensors, torch.float64)
    y = run(problem, SeparableConfig(block_m=32, block_n=16, width=16, block_k=16), tensors)
    assert torch.equal(y.isnan(), exact.isnan())
    assert relative_error(y, exact) <= 1e-5


def test_a_tile_of_zeros_between_channels_stays_zero() -> None:
    """Columns past a group's last channel hold activation(0): 0.5 for a sigmoid, which must not be multiplied."""
    problem = block((1, 20, 6, 6), (20, 20, 3, 3), 16, Epilogue("sigmoid", bias=True), dtype="float32")
    tensors = separable_tensors(problem)
    tensors["output"] = run(problem, SeparableConfig(block_m=32, block_n=16, width=16, block_k=16), tensors)
    check_separable(problem, tensors)


def test_the_planners_configuration_runs_and_its_reason_is_in_the_trace() -> None:
    problem = block((1, 96, 7, 7), (96, 1, 3, 3), 24, RELU)
    tensors = separable_tensors(problem)
    with grouped_conv.interpret(device="a100"), grouped_conv.trace() as calls:
        tensors["output"] = convolve(problem, tensors)
    (call,) = calls
    assert (call.path, call.launches, call.source) == ("separable", ("separable",), "predicted")
    assert "fused: predicted" in call.reason and "a100" in call.reason
    check_separable(problem, tensors)


def test_two_calls_have_the_planners_reason_and_both_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "MARGIN", 0.0)  # as if no fused kernel were fast enough
    fusion.plan_fusion.cache_clear()
    problem = block((1, 16, 5, 5), (16, 4, 3, 3), 40, RELU, RELU)
    tensors = separable_tensors(problem)
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        tensors["output"] = convolve(problem, tensors)
    fusion.plan_fusion.cache_clear()
    assert calls[0].path == "two_calls"
    assert "two calls: predicted" in calls[0].reason
    assert len(calls) == 3 and all(call.launches for call in calls[1:])
    check_separable(problem, tensors)


@pytest.mark.smoke
def test_one_block_in_every_dtype() -> None:
    """What every supported Triton must run."""
    for dtype in ("float16", "bfloat16", "float32"):
        for weight in ((16, 1, 3, 3), (16, 4, 3, 3), (16, 16, 3, 3)):
            problem = block((1, 16, 5, 5), weight, 24, RELU, RELU, dtype=dtype)
            tensors = separable_tensors(problem)
            tensors["output"] = run(problem, SeparableConfig(block_m=32, block_n=32, width=16, block_k=16), tensors)
            check_separable(problem, tensors)
