"""Derivatives of LRN with max-pooling: the forward pass again in torch's own operations, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grouped_conv.autograd import rules
from grouped_conv.by_torch.lrn_pool import LrnPoolRequest, lrn_pool_by_torch
from grouped_conv.ops.lrn_pool import LRN_MAX_POOL
from grouped_conv.ops.operator import wants_gradient
from grouped_conv.planning.lrn_pool import LrnPoolOperands
from grouped_conv.planning.plan_cache import Results


def lrn_max_pool(input: Tensor, request: LrnPoolRequest) -> Tensor:
    """Run the call on `(N, C, H, W)`, with its gradient where autograd records one."""
    operands = LrnPoolOperands(input)
    return rules.run(LRN_MAX_POOL, RULE, operands, request, wants_gradient(operands))


def _save(ctx: Any, operands: LrnPoolOperands, request: LrnPoolRequest, results: Results, needs: Any) -> None:
    ctx.request = request
    ctx.save_for_backward(operands.input)


def _gradients(ctx: Any, grads: Sequence[Tensor | None], needs: Any) -> Sequence[Tensor | None]:
    grad, (input,) = grads[0], ctx.saved_tensors
    if grad is None:
        return (None,)
    with torch.enable_grad(), torch.autocast(input.device.type, enabled=False):
        output = lrn_pool_by_torch(input, ctx.request)
    return torch.autograd.grad(output, input, grad, create_graph=torch.is_grad_enabled())


RULE = rules.Rule(LRN_MAX_POOL.run, LrnPoolOperands, _save, _gradients)
rules.register(LRN_MAX_POOL, RULE)
