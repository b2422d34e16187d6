"""Public calls of problems of every kind, on operands of zeros: what the byte counter runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grouped_conv.bench.traffic.compulsory import ConvNeeds, LrnPoolNeeds, Needs, SeparableNeeds
from grouped_conv.call_values import ragged_weights
from grouped_conv.functional.conv2d import grouped_conv2d
from grouped_conv.functional.lrn_pool import lrn_max_pool2d
from grouped_conv.functional.ragged import ragged_conv2d
from grouped_conv.functional.separable import separable_conv2d
from grouped_conv.kernels.families import Problem
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class SampleCall:
    """A call and what its outputs depend on.

    Attributes:
        run: makes the call, on the same operands each time.
        needs: given the output with its strides.
    """

    run: Callable[[], Tensor]
    needs: Callable[[Tensor], Needs]


def sample_call(problem: Problem) -> SampleCall:
    """The public call that makes `problem`. Each weight of unequal groups is a tensor of its own, so each call gathers
    them.
    """
    return _CALLS[type(problem)](problem)


def _convolution(problem: ConvProblem) -> SampleCall:
    input, layout = _zeros(problem, problem.input_shape, problem.input_channels_last), problem.layout
    options = _epilogue_options(problem, problem.epilogue) | {
        "stride": problem.stride,
        "padding": problem.padding,
        "dilation": problem.dilation,
        "precision": _precision(problem),
    }
    if layout.ragged:
        shapes = ragged_weights.weight_shapes(layout, problem.kernel_size)
        weights = [_zeros(problem, shape, problem.weight_channels_last) for shape in shapes]
        run = partial(ragged_conv2d, input, weights, layout, **options)
    else:
        weight = _zeros(problem, problem.weight_shape, problem.weight_channels_last)
        options |= {"input_shuffle": problem.input_shuffle, "output_shuffle": problem.epilogue.shuffle}
        run = partial(grouped_conv2d, input, weight, groups=problem.groups, **options)
    return SampleCall(run, partial(ConvNeeds, problem))


def _separable(problem: SeparableProblem) -> SampleCall:
    first, second = problem.first, problem.second
    second_options = _epilogue_options(second, problem.epilogue)
    options = _epilogue_options(first, first.epilogue) | {"residual": second_options.pop("residual")}
    options |= {f"pointwise_{name}": value for name, value in second_options.items()}
    run = partial(
        separable_conv2d,
        _zeros(first, first.input_shape, first.input_channels_last),
        _zeros(first, first.weight_shape, first.weight_channels_last),
        _zeros(second, problem.pointwise_shape, second.weight_channels_last),
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        precision=_precision(first),
        **options,
    )
    return SampleCall(run, partial(SeparableNeeds, problem))


def _lrn_pool(problem: LrnPoolProblem) -> SampleCall:
    names = ("size", "alpha", "beta", "k", "kernel_size", "stride", "padding", "ceil_mode", "groups", "order")
    options = {name: getattr(problem, name) for name in names}
    run = partial(lrn_max_pool2d, _zeros(problem, problem.input_shape, problem.channels_last), **options)
    return SampleCall(run, partial(LrnPoolNeeds, problem))


_CALLS: dict[type[Problem], Callable[[Any], SampleCall]] = {
    ConvProblem: _convolution,
    SeparableProblem: _separable,
    LrnPoolProblem: _lrn_pool,
}


def _zeros(problem: ConvProblem | LrnPoolProblem, shape: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.zeros(tuple(shape), dtype=getattr(torch, problem.dtype)).contiguous(memory_format=layout)


def _epilogue_options(problem: ConvProblem, epilogue: Epilogue) -> dict[str, Any]:
    """Keyword arguments for the epilogue; bias, scale and residual are `None` where it has none."""
    bias, scale = torch.zeros(2, problem.out_channels, dtype=getattr(torch, problem.dtype)).unbind()
    image = _zeros(problem, problem.output_shape, problem.output_channels_last)
    return {
        "bias": bias if epilogue.bias else None,
        "scale": scale if epilogue.scale else None,
        "residual": image if epilogue.residual else None,
        "activation": epilogue.activation,
        "negative_slope": epilogue.negative_slope,
    }


def _precision(problem: ConvProblem) -> str | None:
    return problem.precision if problem.dtype == "float32" else None
