"""Forward passes and gradients alike: which families compute a problem, and the gradients of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grouped_conv.autotune.model.families import MODELS, Model
from grouped_conv.autotune.model.gradient_families import GRADIENT_MODELS
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import DIRECTIONS, ConvProblem


def models_for(problem: ConvProblem) -> dict[str, Model]:
    """The families that may compute the problem's direction, by name."""
    return MODELS if problem.direction == "forward" else GRADIENT_MODELS


def model_of(config: KernelConfig) -> Model:
    """What tuning knows of the configuration's family, of either direction."""
    return GRADIENT_MODELS.get(config.family) or MODELS[config.family]


def in_directions(problems: Mapping[str, ConvProblem], directions: Iterable[str]) -> dict[str, ConvProblem]:
    """Forward problems in each of the directions; a gradient's name is the layer's with the direction behind it.

    Problems that are gradients already stay as they are.

    Raises:
        ValueError: for an unknown direction.
    """
    wanted = tuple(directions)
    unknown = [direction for direction in wanted if direction not in DIRECTIONS]
    if unknown or not wanted:
        raise ValueError(f"unknown directions {unknown}; accepted: {', '.join(DIRECTIONS)}")
    found: dict[str, ConvProblem] = {}
    for name, problem in problems.items():
        if problem.direction != "forward":
            found[name] = problem
            continue
        for direction in wanted:
            forward = direction == "forward"
            found[name if forward else f"{name} {direction}"] = (
                problem if forward else gradient_problem(problem, direction)
            )
    return found
