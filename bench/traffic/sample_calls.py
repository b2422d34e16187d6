"""Public calls of problems of every kind, on operands of zeros: what the byte counter runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_conv.bench.traffic.compulsory import ConvNeeds, LrnPoolNeeds, Needs, SeparableNeeds
from grouped_conv.call_values import ragged_weights
from grouped_conv.functional.conv2d import grouped_conv2d
from grouped_conv.functional.lrn_pool import lrn_max_pool2d
from grouped_conv.functional.ragged import ragged_conv2d
from grouped_conv.functional.separable import separable_conv2d
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

Problem = ConvProblem | SeparableProblem | LrnPoolProblem


@dataclass(frozen=True, slots=True)
class SampleCall:
    """A call and what its outputs depend on.

    Attributes:
        run: makes the call, on the same operands each time.
        needs: given the output as it lies in memory.
    """

    run: Callable[[], Tensor]
    needs: Callable[[Tensor], Needs]


def sample_call(problem: Problem) -> SampleCall:
    """The public call that makes `problem`; weights of unequal groups lie scattered, so each call gathers them."""
    if isinstance(problem, LrnPoolProblem):
        return _lrn_pool(problem)
    if isinstance(problem, SeparableProblem):
        return _separable(problem)
    return _ragged(problem) if problem.layout.ragged else _uniform(problem)


def _uniform(problem: ConvProblem) -> SampleCall:
    input, weight = _four(problem, problem.input_shape), _four(problem, problem.weight_shape, weight=True)
    bias, scale, residual = _epilogue_operands(problem, problem.epilogue)

    def run() -> Tensor:
        return grouped_conv2d(
            input,
            weight,
            bias,
            problem.stride,
            problem.padding,
            problem.dilation,
            problem.groups,
            activation=problem.epilogue.activation,
            negative_slope=problem.epilogue.negative_slope,
            scale=scale,
            residual=residual,
            precision=_precision(problem),
            input_shuffle=problem.input_shuffle,
            output_shuffle=problem.epilogue.shuffle,
        )

    return SampleCall(run, lambda output: ConvNeeds(problem, output))


def _ragged(problem: ConvProblem) -> SampleCall:
    input = _four(problem, problem.input_shape)
    shapes = ragged_weights.weight_shapes(problem.layout, problem.kernel_size)
    weights = [_four(problem, shape, weight=True) for shape in shapes]
    bias, scale, residual = _epilogue_operands(problem, problem.epilogue)

    def run() -> Tensor:
        return ragged_conv2d(
            input,
            weights,
            problem.layout,
            bias,
            problem.stride,
            problem.padding,
            problem.dilation,
            activation=problem.epilogue.activation,
            negative_slope=problem.epilogue.negative_slope,
            scale=scale,
            residual=residual,
            precision=_precision(problem),
        )

    return SampleCall(run, lambda output: ConvNeeds(problem, output))


def _separable(problem: SeparableProblem) -> SampleCall:
    first, epilogue = problem.first, problem.epilogue
    input, weight = _four(first, first.input_shape), _four(first, first.weight_shape, weight=True)
    pointwise = _four(problem.second, problem.pointwise_shape, weight=True)
    bias, scale, _ = _epilogue_operands(first, first.epilogue)
    pointwise_bias, pointwise_scale, residual = _epilogue_operands(problem.second, epilogue)

    def run() -> Tensor:
        return separable_conv2d(
            input,
            weight,
            pointwise,
            bias,
            pointwise_bias,
            first.stride,
            first.padding,
            first.dilation,
            activation=first.epilogue.activation,
            pointwise_activation=epilogue.activation,
            scale=scale,
            pointwise_scale=pointwise_scale,
            residual=residual,
            precision=_precision(first),
            negative_slope=first.epilogue.negative_slope,
            pointwise_negative_slope=epilogue.negative_slope,
        )

    return SampleCall(run, lambda output: SeparableNeeds(problem, output))


def _lrn_pool(problem: LrnPoolProblem) -> SampleCall:
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format
    input = torch.zeros(problem.input_shape, dtype=getattr(torch, problem.dtype)).contiguous(memory_format=layout)

    def run() -> Tensor:
        return lrn_max_pool2d(
            input,
            problem.size,
            problem.alpha,
            problem.beta,
            problem.k,
            problem.kernel_size,
            problem.stride,
            problem.padding,
            problem.ceil_mode,
            groups=problem.groups,
            order=problem.order,
        )

    return SampleCall(run, lambda output: LrnPoolNeeds(problem, output))


def _four(problem: ConvProblem, shape: Sequence[int], weight: bool = False) -> Tensor:
    last = problem.weight_channels_last if weight else problem.input_channels_last
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.zeros(tuple(shape), dtype=getattr(torch, problem.dtype)).contiguous(memory_format=layout)


def _epilogue_operands(problem: ConvProblem, epilogue: Epilogue) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(bias, scale, residual), each where the epilogue has it."""
    dtype = getattr(torch, problem.dtype)
    bias, scale = (
        torch.zeros(problem.out_channels, dtype=dtype) if has else None for has in (epilogue.bias, epilogue.scale)
    )
    if not epilogue.residual:
        return bias, scale, None
    layout = torch.channels_last if problem.output_channels_last else torch.contiguous_format
    return bias, scale, torch.zeros(problem.output_shape, dtype=dtype).contiguous(memory_format=layout)


def _precision(problem: ConvProblem) -> str | None:
    return problem.precision if problem.dtype == "float32" else None
