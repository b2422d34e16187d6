"""Derivatives of a grouped convolution followed by a 1x1 convolution.

Gradients compute the tensor between the two convolutions again and use each convolution's own formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from grouped_conv.autograd import differentiation, rules
from grouped_conv.by_torch.gradients import Saved, needs_preactivation
from grouped_conv.call_values.request import Gradients, Operands, Request, Wanted
from grouped_conv.call_values.separable_request import SeparableOperands, SeparableRequest
from grouped_conv.ops.operator import wants_gradient
from grouped_conv.ops.separable import SEPARABLE
from grouped_conv.planning.plan_cache import Results


def convolve(operands: SeparableOperands, request: SeparableRequest) -> Tensor:
    """Run the call with derivatives of every kind that the surroundings ask for.

    Under torch.func and forward-mode AD the two convolutions are calls of their own, which have those derivatives.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        hidden = differentiation.convolve(operands.first, request.first)
        return differentiation.convolve(operands.second(hidden), request.second)
    return rules.run(SEPARABLE, RULE, operands, request, wants_gradient(operands))


def _save(ctx: Any, operands: SeparableOperands, request: SeparableRequest, results: Results, needs: Any) -> None:
    ctx.request = request
    ctx.save_for_backward(*operands, results[0])


def _gradients(ctx: Any, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> Sequence[Tensor | None]:
    """Gradients of the eight tensors from that of the output."""
    grad = grads[0]
    if grad is None:
        return [None] * len(SeparableOperands._fields)
    *tensors, output = ctx.saved_tensors
    operands, request = SeparableOperands(*tensors), ctx.request
    before = any(needs[:4])
    hidden, hidden_argument = _again(operands.first, request.first)
    argument = None
    if needs_preactivation(request.pointwise_activation, request.pointwise_negative_slope):
        argument = _again(operands.second(hidden), request.second)[1]
    wanted = Wanted(before, *needs[4:8])
    by_second = _one(grad, operands.second(hidden), request.second, output, argument, wanted)
    by_first = Gradients()
    if before:
        wanted = Wanted(needs[0], needs[1], needs[2], needs[3], residual=False)
        by_first = _one(by_second.input, operands.first, request.first, hidden, hidden_argument, wanted)
    return [*by_first[:4], *by_second[1:]]


def _again(operands: Operands, request: Request) -> tuple[Tensor, Tensor | None]:
    """One convolution, computed again: its output, and the activation's argument where a derivative needs it."""
    output, argument = differentiation.convolve_saving(operands, differentiation.for_backward(request))
    assert output is not None
    return output, argument


def _one(
    grad: Tensor | None, operands: Operands, request: Request, output: Tensor, argument: Tensor | None, wanted: Wanted
) -> Gradients:
    """Gradients of one convolution's five operands."""
    saved = Saved.of(operands, request, output, argument, keeps_input=True)
    return differentiation.gradients(saved, request, grad, None, wanted)


RULE = rules.Rule(SEPARABLE.run, SeparableOperands, _save, _gradients)
rules.register(SEPARABLE, RULE)
