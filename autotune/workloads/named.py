"""Named models as tables of convolutions, for tuning and for gates on compiled code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grouped_conv.autotune.workloads.layers import MODELS, Layer
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import DIRECTIONS, ConvProblem

__all__ = ["MODELS", "Layer", "in_directions", "layer_problem", "workload"]


def workload(
    model: str,
    batch: int = 128,
    dtype: str = "float16",
    *,
    epilogue: Epilogue | None = None,
    channels_last: bool = True,
) -> dict[str, ConvProblem]:
    """The convolutions of `model` by layer name, each shape once.

    Args:
        epilogue: of every layer; by default a bias and the activation that follows the layer in the network.

    Raises:
        ValueError: for an unknown model, naming the known ones, and for a bad batch or dtype.
    """
    layers = MODELS.get(model.lower())
    if layers is None:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, but got {batch}")
    return {
        layer.name: layer_problem(layer, batch, dtype, epilogue=epilogue, channels_last=channels_last)
        for layer in layers
    }


def layer_problem(
    layer: Layer, batch: int, dtype: str, *, epilogue: Epilogue | None = None, channels_last: bool = True
) -> ConvProblem:
    """One row as a problem; `epilogue` as for `workload`."""
    return ConvProblem.of(
        (batch, layer.channels, layer.height, layer.height),
        (layer.filters, layer.channels // layer.groups, layer.size, layer.size),
        layer.stride,
        layer.padding,
        groups=layer.groups,
        dtype=dtype,
        channels_last=channels_last,
        epilogue=epilogue or Epilogue(layer.activation, bias=True),
    )


def in_directions(problems: Mapping[str, ConvProblem], directions: Iterable[str]) -> dict[str, ConvProblem]:
    """Forward problems in each of the directions; a gradient's name is the layer's followed by the direction.

    Problems that already are gradients stay as they are.

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
