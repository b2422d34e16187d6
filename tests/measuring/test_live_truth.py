"""What the tuner takes for the truth, against the oracles of the kernels' own tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_oracle import reference
from gradient_oracle import gradients
from ragged_gradient_oracle import ragged_gradients
from ragged_oracle import ragged_reference

from grouped_conv.autotune.measuring.live_tensors import OUTPUT, make_operands, poisoned_outputs
from grouped_conv.autotune.measuring.live_truth import computed, preactivation, relative_error
from grouped_conv.autotune.measuring.tolerance import allowed_error
from grouped_conv.kernels import ConvProblem, Epilogue, GroupLayout
from grouped_conv.kernels.gradient_call import gradient_problem

CPU = torch.device("cpu")
SAME = 1e-7
"""The oracles keep a slope in fp32."""
RAGGED = ConvProblem(
    2, GroupLayout.sizes([3, 5, 8], [4, 2, 6]), (7, 8), (3, 3), padding=(1, 1, 1, 1), dtype="float32",
    epilogue=Epilogue("relu", bias=True),
)  # fmt: skip


def uniform(activation: str, **more: object) -> ConvProblem:
    epilogue = Epilogue(activation, bias=True, scale=True, residual=True, shuffle=2)
    more = {"groups": 2, "padding": (1, 0, 2, 1), **more}
    shape = (8, 8 // more["groups"], 3, 3)  # type: ignore[operator]
    return ConvProblem.of(
        (2, 8, 9, 10), shape, dtype="float32", precision="ieee", epilogue=epilogue, input_shuffle=2, **more
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "leaky_relu", "gelu", "tanh", "sigmoid", "silu"])
@pytest.mark.parametrize("more", [{}, {"groups": 4, "padding": 1, "stride": 2}], ids=["uneven padding", "stride 2"])
def test_forward_and_gradients(activation: str, more: dict[str, object]) -> None:
    check(uniform(activation, **more), reference, gradients)


def test_unequal_groups() -> None:
    check(RAGGED, ragged_reference, ragged_gradients)


def check(problem: ConvProblem, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """The truth of a problem and of its gradients is what these oracles say."""
    tensors = make_operands(problem, 0, CPU)
    assert relative_error(computed(problem, tensors, torch.float64), forward(problem, tensors)) < SAME
    for name in ("input", "weight"):
        gradient = gradient_problem(problem, f"{name}_grad")
        tensors = make_operands(gradient, 1, CPU)
        exact = backward(gradient, tensors)[name]
        assert relative_error(computed(gradient, tensors, torch.float64), exact) < SAME, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torchs_own_results_are_within_the_tolerance(dtype: str) -> None:
    problem = ConvProblem.of((2, 96, 13, 13), (64, 48, 5, 5), padding=2, groups=2, dtype=dtype, precision="ieee")
    for made in (problem, *(gradient_problem(problem, direction) for direction in ("input_grad", "weight_grad"))):
        tensors = make_operands(made, 0, CPU)
        exact = computed(made, tensors, torch.float64)
        assert relative_error(computed(made, tensors, getattr(torch, dtype)), exact) <= allowed_error(made), made


def test_a_skipped_tap_is_not_within_the_tolerance() -> None:
    problem = ConvProblem.of((1, 96, 13, 13), (64, 48, 5, 5), padding=2, groups=2, dtype="float16")
    tensors = make_operands(problem, 0, CPU)
    exact = computed(problem, tensors, torch.float64)
    tensors["weight"][:, :, 2, 3] = 0
    assert relative_error(computed(problem, tensors, torch.float64), exact) > 10 * allowed_error(problem)


def test_what_is_not_written_is_infinitely_wrong() -> None:
    problem = uniform("relu")
    exact = computed(problem, make_operands(problem, 0, CPU), torch.float64)
    output = poisoned_outputs(problem, CPU)[OUTPUT["forward"]]
    assert bool(output.isnan().all())
    assert relative_error(output, exact) == float("inf")
    output.copy_(exact)
    output[0, 0, 0, 0] = float("nan")
    assert relative_error(output, exact) == float("inf")


def test_operands_are_seeded_and_differ() -> None:
    problem = uniform("relu")
    first, again, other = (make_operands(problem, seed, CPU) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
    assert preactivation(problem, first, torch.float64).std() > 0.5
