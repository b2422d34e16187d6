"""Convolution of unequal groups in ATen's operations: one `conv2d` per size of groups, and its derivatives.

Groups of one size are one ordinary grouped convolution of gathered channels. The outputs are then put into group order.
Everything here can be differentiated, transformed and traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv.by_torch.gradients import (
    Saved,
    aten_convolution,
    convolution_gradients,
    gradient_of_sum,
    per_channel,
    sum_per_channel,
)
from grouped_conv.call_values import device_tables
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Gradients, Request, Wanted
from grouped_conv.kernels.values.layout import GroupLayout

Channels = tuple[int, ...]
Convolve = Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]


@dataclass(frozen=True, slots=True)
class Route:
    """The channels of one size bucket: those its groups read and those they make, group after group."""

    inputs: Channels
    outputs: Channels


@lru_cache(maxsize=1024)
def routes(layout: GroupLayout) -> tuple[Route, ...]:
    """One route per size bucket, in the order of the weights."""
    begins = np.cumsum([0, *layout.outputs]).tolist()
    return tuple(
        Route(
            tuple(channel for group in bucket.groups for channel in layout.inputs_of(group)),
            tuple(channel for group in bucket.groups for channel in range(begins[group], begins[group + 1])),
        )
        for bucket in layout.buckets
    )


@lru_cache(maxsize=1024)
def _sources(layout: GroupLayout) -> tuple[Channels, ...]:
    """Where the gradient of each input channel comes from, among the gathered channels of all buckets in a row.

    As many tables as the channel that most groups read has readers; the n-th holds each channel's n-th reader in group
    order, or the number of gathered channels where there is none.
    """
    readers: list[list[tuple[int, int]]] = [[] for _ in range(layout.in_channels)]
    position = 0
    for bucket in layout.buckets:
        for group in bucket.groups:
            for channel in layout.inputs_of(group):
                readers[channel].append((group, position))
                position += 1
    ordered = [[place for _, place in sorted(places)] for places in readers]
    rounds = max(len(places) for places in ordered)
    return tuple(
        tuple(places[turn] if turn < len(places) else position for places in ordered) for turn in range(rounds)
    )


@lru_cache(maxsize=1024)
def _placing(layout: GroupLayout) -> Channels:
    """For each output channel, its place among the channels that the buckets make, one bucket after another."""
    made = [channel for route in routes(layout) for channel in route.outputs]
    return tuple(np.argsort(made).tolist())


def ragged_convolution(
    input: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    layout: GroupLayout,
    geometry: Geometry,
    convolve: Convolve = aten_convolution,
) -> Tensor:
    """The convolution by ATen; `bias` is a vector over all output channels.

    Args:
        convolve: one grouped convolution, `aten_convolution` or a like.
    """
    parts = []
    for route, weight in zip(routes(layout), weights, strict=True):
        part_bias = None if bias is None else gather(bias, route.outputs, 0)
        parts.append(convolve(gather(input, route.inputs), weight, part_bias, geometry))
    return gather(parts[0] if len(parts) == 1 else torch.cat(parts, 1), _placing(layout))


def ragged_gradients(
    grad: Tensor,
    input: Tensor,
    weights: Sequence[Tensor],
    layout: GroupLayout,
    geometry: Geometry,
    wanted: Wanted,
    wanted_weights: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the input and of each weight; `None` for those not `wanted`.

    What several groups contribute to one input channel is added in group order, so that the sum is reproducible.
    """
    parts, grad_weights = [], []
    for route, weight, weight_wanted in zip(routes(layout), weights, wanted_weights, strict=True):
        asked = wanted._replace(weight=weight_wanted, bias=False)
        found = convolution_gradients(gather(grad, route.outputs), gather(input, route.inputs), weight, geometry, asked)
        parts.append(found.input)
        grad_weights.append(found.weight)
    if not wanted.input:
        return None, grad_weights
    known = [part for part in parts if part is not None]
    return _scattered(known[0] if len(known) == 1 else torch.cat(known, 1), layout), grad_weights


def ragged_vector_jacobian(
    saved: Saved,
    weights: Sequence[Tensor],
    layout: GroupLayout,
    request: Request,
    grad: Tensor | None,
    needs: Wanted,
    needs_weights: Sequence[bool],
    grad_preactivation: Tensor | None = None,
) -> tuple[Gradients, list[Tensor | None]]:
    """Gradients of the operands but for the weights, as far as needed, and of each weight, in torch's operations.

    Args:
        saved: its weight is unused, as is that of `needs`.
    """
    grad = gradient_of_sum(saved, request, grad, grad_preactivation)
    if grad is None:
        return Gradients(), [None] * len(weights)
    input, scale, geometry = saved.some_input(), saved.scale, request.geometry
    inner = grad if scale is None else grad * per_channel(scale)
    grad_input, grad_weights = ragged_gradients(inner, input, weights, layout, geometry, needs, needs_weights)
    grad_bias = sum_per_channel(grad) if needs.bias else None
    grad_scale = None
    if scale is not None and needs.scale:
        grad_scale = sum_per_channel(grad * ragged_convolution(input, weights, None, layout, geometry))
    return Gradients(grad_input, None, grad_bias, grad_scale, grad if needs.residual else None), grad_weights


def _scattered(gathered: Tensor, layout: GroupLayout) -> Tensor:
    """The sum over readers of what was gathered for them: the adjoint of gathering every bucket's input channels."""
    tables = _sources(layout)
    if any(gathered.shape[1] in table for table in tables):
        gathered = F.pad(gathered, (0, 0, 0, 0, 0, 1))  # a channel of zeros for those without an n-th reader
    total = gather(gathered, tables[0])
    for table in tables[1:]:
        total = total + gather(gathered, table)
    return total


def gather(value: Tensor, channels: Channels, axis: int = 1) -> Tensor:
    """These channels of `value` in this order; a view where they are consecutive."""
    first, count = channels[0], len(channels)
    if channels == tuple(range(first, first + count)):
        return value if count == value.shape[axis] else value.narrow(axis, first, count)
    if value.is_cuda and _is_capturing() and not device_tables.has_list(channels, value.device):
        runs = [value.narrow(axis, channel, 1) for channel in channels]  # nothing can be copied to the device now
        return torch.cat(runs, axis)
    return value.index_select(axis, _index(channels, value))


def _is_capturing() -> bool:
    return not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


def _index(channels: Channels, value: Tensor) -> Tensor:
    """The channels as a tensor on the device of `value`: shared, unless a tracer or transform would get hold of it."""
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or type(value) is not Tensor
    if traced or torch._C._are_functorch_transforms_active() or value.device.type not in ("cpu", "cuda"):
        return torch.tensor(channels, device=value.device)
    return device_tables.channel_list(channels, value.device)
