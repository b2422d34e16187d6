"""LRN and max-pooling in torch's own operations: for CPUs, for gradients, and as the reference for our kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.problem import Pair


class LrnPoolRequest(NamedTuple):
    """What one call asks for, as `grouped_conv.kernels.lrn_pool.problem.LrnPoolProblem` describes it.

    The fields are in the order of the operator's schema.

    Attributes:
        backend: `aten`, `kernel`, or `auto` for the policy's choice.
    """

    order: str
    size: int
    alpha: float
    beta: float
    k: float
    groups: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    backend: str = "auto"


def checked(request: LrnPoolRequest) -> LrnPoolRequest:
    """The request, if it describes a layer on some input.

    Raises:
        ValueError: naming the values and what is accepted.
    """
    values = request._asdict()
    del values["backend"]
    window = (max(1, request.kernel_size[0]), max(1, request.kernel_size[1]))
    LrnPoolProblem(batch=1, channels=max(1, request.groups), in_size=window, **values)
    return request


def local_response_norm(input: Tensor, size: int, alpha: float, beta: float, k: float, groups: int = 1) -> Tensor:
    """`input / (k + alpha / size * sum of input^2 over size neighbouring channels of the same group) ** beta`.

    16-bit input is squared in float32: 256^2 is already beyond float16.

    Args:
        input: `(N, C, H, W)`; the output has its memory format.
        size: channels in the window, zeros beyond a group's ends; an even window reaches one further down than up.
        groups: towers that are normalised apart.

    Raises:
        ValueError: when `groups` does not divide C.
    """
    if input.dim() != 4 or input.shape[1] % groups:
        raise ValueError(
            f"expected an input (N, C, H, W) with C divisible by groups={groups}, but got {tuple(input.shape)}"
        )
    wide = input if input.dtype in (torch.float32, torch.float64) else input.float()
    towers = wide.unflatten(1, (groups, -1))  # [N, groups, C/groups, H, W], a view in either memory format
    channels = towers.shape[2]
    squares = F.pad(towers.square(), (0, 0, 0, 0, size // 2, (size - 1) // 2))
    total = squares.narrow(2, 0, channels)
    for offset in range(1, size):
        total = total + squares.narrow(2, offset, channels)
    divisor = ((k + alpha / size * total) ** beta).flatten(1, 2)
    return (wide / divisor).to(input.dtype)  # in four dimensions: the strides of the first operand win


def lrn_pool_by_torch(input: Tensor, request: LrnPoolRequest) -> Tensor:
    """The call in torch's operations, rounded to the input's dtype after each step."""
    for step in request.order.split("-"):
        if step == "relu":
            input = F.relu(input)
        elif step == "lrn":
            input = local_response_norm(input, request.size, request.alpha, request.beta, request.k, request.groups)
        else:
            input = F.max_pool2d(
                input, request.kernel_size, request.stride, request.padding, ceil_mode=request.ceil_mode
            )
    return input
