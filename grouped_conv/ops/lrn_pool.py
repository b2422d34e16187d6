"""The operator `grouped_conv::lrn_max_pool2d`: local response normalisation and max-pooling.

It keeps its input's dtype, as `max_pool2d` does under autocast. Its output has the memory format of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.by_torch.lrn_pool import LrnPoolRequest, checked
from grouped_conv.ops.operator import Operator
from grouped_conv.planning.lrn_pool import PLANNER, LrnPoolOperands, empty_output


def _request(
    order: str,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *choices: Any,
) -> LrnPoolRequest:
    kernel, step, pad = ((int(values[0]), int(values[1])) for values in (kernel_size, stride, padding))
    return LrnPoolRequest(order, size, alpha, beta, k, groups, kernel, step, pad, *choices)


def _fake(operands: LrnPoolOperands, request: LrnPoolRequest) -> tuple[Tensor]:
    input = operands.input
    checked(request)
    torch._check(
        input.dim() == 4 and request.groups > 0 and input.shape[1] % request.groups == 0,
        lambda: f"expected an input (N, C, H, W) with C divisible by groups={request.groups}, got {list(input.shape)}",
    )
    if "pool" not in request.order:
        return (empty_output(input, input.shape),)
    with torch.no_grad():
        pooled = F.max_pool2d(input, request.kernel_size, request.stride, request.padding, ceil_mode=request.ceil_mode)
    return (empty_output(input, pooled.shape),)


LRN_MAX_POOL = Operator(
    "lrn_max_pool2d",
    "(Tensor input, str order, int size, float alpha, float beta, float k, int groups, int[2] kernel_size,"
    " int[2] stride, int[2] padding, bool ceil_mode, str backend) -> Tensor",
    PLANNER,
    operands=LrnPoolOperands,
    request=_request,
    attributes=lambda request: request,
    fake=_fake,
)
