"""One way to run a problem of any family and direction and to compare its results with float64."""

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import lrn_pool_oracle
from conv_oracle import check_output, make_tensors, run_call
from gradient_oracle import check_gradient, gradient_tensors, run_gradient
from ragged_gradient_oracle import check_ragged_gradient, ragged_gradient_tensors, run_ragged_gradient
from ragged_oracle import check_ragged, make_ragged_tensors
from separable_cases import check_separable, run_separable, separable_tensors
from torch import Tensor

from grouped_conv.kernels import ConvProblem, KernelConfig, LrnPoolProblem, SeparableProblem
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.launch import Launch

Run = Callable[[Launch, Mapping[str, Tensor]], Any]
Problem = ConvProblem | SeparableProblem | LrnPoolProblem


def judge(
    problem: Problem, config: KernelConfig, run: Run, what: str = "", seed: int = 0
) -> tuple[dict[str, Tensor], list[Any]]:
    """Run the launches with `run` and assert that every result is right, a gradient's scale included.

    The configuration must survive JSON too, as the store keeps it.

    Args:
        seed: of the random operands.
        problem: for a gradient's configuration, the gradient or the forward problem that it belongs to.

    Returns:
        The buffers by name, and what each run returned.
    """
    assert KernelConfig.from_json(config.to_json()) == config
    if isinstance(problem, LrnPoolProblem):
        tensors = lrn_pool_oracle.make_tensors(problem, seed)
        _, found = lrn_pool_oracle.run_launch(problem, config, tensors, run)  # type: ignore[arg-type]
        lrn_pool_oracle.check_output(problem, tensors, what)
        return tensors, [found]
    if isinstance(problem, SeparableProblem):
        tensors = separable_tensors(problem, seed)
        runs = run_separable(problem, config, tensors, run)
        check_separable(problem, tensors, what)
        return tensors, runs
    if config.direction != "forward":
        return _judge_gradient(problem, config, run, what, seed)
    uniform = problem.layout.is_uniform
    tensors = make_tensors(problem, seed) if uniform else make_ragged_tensors(problem, config, seed)
    runs = run_call(plan_call(problem, config), tensors, run)
    (check_output if uniform else check_ragged)(problem, tensors, what)
    return tensors, runs


def _judge_gradient(
    problem: ConvProblem, config: KernelConfig, run: Run, what: str, seed: int
) -> tuple[dict[str, Tensor], list[Any]]:
    make, execute, check = (
        (gradient_tensors, run_gradient, check_gradient)
        if problem.layout.is_uniform
        else (ragged_gradient_tensors, run_ragged_gradient, check_ragged_gradient)
    )
    tensors = make(problem, seed)
    scaled = problem.epilogue.scale and config.direction == "weight_grad"
    asked = gradient_problem(problem, config.direction)
    runs = execute(asked, config, tensors, run, **({"grad_scale": True} if scaled else {}))
    for name in (config.direction.removesuffix("_grad"), *["scale"] * scaled):
        check(problem, tensors, name, what)
    return tensors, runs


def in_another_order(seed: int) -> Run:
    """A runner that interprets a launch's programs in a random order."""

    def run(launch: Launch, tensors: Mapping[str, Tensor]) -> None:
        programs = list(itertools.product(*map(range, launch.grid)))
        random.Random(seed).shuffle(programs)
        interpret_launch(launch, tensors, iter(programs))

    return run


ORDERS: tuple[Run, ...] = (interpret_launch, in_another_order(0), in_another_order(1))
"""A result that no order of programs may change is the same in every bit from each of these."""
