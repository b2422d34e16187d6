"""How operators are differentiated: one autograd function for eager code, one registration for compiled code.

A `Rule` says what an operator keeps for its gradients and how it computes them. Eager calls go through `EagerCall`,
which costs half as much on the host as the formulas that torch registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv.autograd import forward_context
from grouped_conv.ops.operator import Operator, library
from grouped_conv.planning.plan_cache import Results


class Rule(NamedTuple):
    """How one operator's calls are differentiated.

    Attributes:
        run: an eager call below autograd, from operands and request.
        operands: makes the operands of their fields.
        save: keeps in autograd's `ctx` what the gradients need: (ctx, operands, request, results, needs).
        gradients: of the operands, in their order: (ctx, gradients of the results, needs). `needs` tells for each
            operand whether it needs one.
        nest: groups tensors in a row into the operands' fields.
    """

    run: Callable[[Any, Any], Results]
    operands: Callable[..., Any]
    save: Callable[[Any, Any, Any, Results, Sequence[Any]], None]
    gradients: Callable[[Any, Sequence[Tensor | None], Sequence[Any]], Sequence[Any]]
    nest: Callable[[Sequence[Any]], Sequence[Any]] = tuple


class EagerCall(torch.autograd.Function):
    """One call of an operator under autograd, outside of compilers and torch.func.

    `apply` takes the rule, the request and the operands' tensors in a row.
    """

    @staticmethod
    def forward(ctx: Any, rule: Rule, request: Any, *tensors: Any) -> Any:
        """Run the call; its results."""
        operands = rule.operands(*rule.nest(tensors))
        results = rule.run(operands, request)
        ctx.rule = rule
        save(ctx, rule, operands, request, results, rule.nest(ctx.needs_input_grad[2:]))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Gradients of the tensors, under the forward pass's policies."""
        found = gradients(ctx, ctx.rule, grads, ctx.rule.nest(ctx.needs_input_grad[2:]))
        return (None, None, *spread(found))


def run(operator: Operator[Any, Any], rule: Rule, operands: Any, request: Any, recorded: bool) -> Tensor:
    """The first result of a call outside of torch.func, compiled or eager.

    Args:
        recorded: will autograd record the call?
    """
    if torch.compiler.is_compiling():
        results = operator.dispatch(operands, request)
    elif recorded:
        results = EagerCall.apply(rule, request, *spread(operands))
    else:
        results = operator.run(operands, request)
    assert results[0] is not None
    return results[0]


def register(operator: Operator[Any, Any], rule: Rule) -> None:
    """Give the operator itself these derivatives, for compilation and export."""

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        operands, request = operator.read(inputs)
        needs = [_requires_grad(one) for one in operands]
        save(ctx, rule, operands, request, operator.wanted(output, request), needs)

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        found = gradients(ctx, rule, grads, ctx.needs_input_grad[: operator.tensors])
        return (*found[: operator.tensors], *[None] * operator.others)

    torch.library.register_autograd(operator.name, backward, setup_context=setup, lib=library)


def spread(fields: Sequence[Any]) -> list[Any]:
    """The tensors of all fields in a row."""
    row: list[Any] = []
    for one in fields:
        if isinstance(one, list | tuple):
            row += one
        else:
            row.append(one)
    return row


def save(ctx: Any, rule: Rule, operands: Any, request: Any, results: Results, needs: Sequence[Any]) -> None:
    """Keep what the gradients need, and the context they will run in."""
    ctx.set_materialize_grads(False)
    forward_context.remember(ctx, operands[0])
    rule.save(ctx, operands, request, results, needs)


def gradients(ctx: Any, rule: Rule, grads: Sequence[Tensor | None], needs: Sequence[Any]) -> Sequence[Any]:
    """The gradients of the operands, under the forward pass's policies."""
    return forward_context.run(ctx, partial(rule.gradients, ctx, grads, needs))


def _requires_grad(one: Any) -> Any:
    if isinstance(one, tuple):
        return [tensor.requires_grad for tensor in one]
    return one is not None and one.requires_grad
