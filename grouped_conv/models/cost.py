"""What a network costs: parameters and multiply-accumulates of each layer, counted without computing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One convolution or linear layer on one input shape.

    Attributes:
        name: the layer's name in the model.
        groups: groups of a convolution, 1 for a linear layer.
        output_shape: as the layer returned it.
        weights: elements of the weight.
        parameters: weights and bias.
        macs: weights times output positions (a padded zero counts, the bias does not), for the whole batch.
    """

    name: str
    groups: int
    output_shape: tuple[int, ...]
    weights: int
    parameters: int
    macs: int


def layer_costs(model: nn.Module, input_shape: Sequence[int]) -> list[LayerCost]:
    """The cost of every `nn.Conv2d` and `nn.Linear` (and subclass) of a model, in the order they run.

    The model runs once on meta tensors: shapes only, no arithmetic, its own parameters untouched.

    Args:
        model: any module that takes one `(N, C, H, W)` tensor.
        input_shape: `(N, C, H, W)`.
    """
    rows: list[LayerCost] = []
    names = {module: name for name, module in model.named_modules()}

    def count(layer: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs_per_position = layer.weight.shape[0]
        rows.append(
            LayerCost(
                name=names[layer],
                groups=getattr(layer, "groups", 1),
                output_shape=tuple(output.shape),
                weights=layer.weight.numel(),
                parameters=layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()),
                macs=layer.weight.numel() * (math.prod(output.shape) // outputs_per_position),
            )
        )

    layers = [module for module in names if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        dtype = next((value.dtype for value in values.values() if value.is_floating_point()), torch.float32)
        on_meta = {name: value.detach().to("meta") for name, value in values.items()}
        with torch.no_grad():
            functional_call(model, on_meta, (torch.empty(tuple(input_shape), dtype=dtype, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of a model's convolutions and linear layers on an `(N, C, H, W)` input."""
    return sum(row.macs for row in layer_costs(model, input_shape))
