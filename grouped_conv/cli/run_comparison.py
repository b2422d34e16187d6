"""Runs a network and the same network of plain torch layers: what ran in each layer, and how far the results differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from grouped_conv.context.tracing import CallRecord, trace
from grouped_conv.converting.conversion import unconvert

# How far rounding may move a layer, as a part of its largest value, for every convolution up to and including it: four
# unit roundoffs of the products' format; for exact fp32 products, what another order of adding thousands of them makes.
ROUNDING = {"ieee": 5e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}


@dataclass(slots=True)
class Observed:
    """What one layer returned, and the records of the convolutions it called."""

    output: Tensor
    calls: list[CallRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One layer in both networks, each fed by the layers before it.

    Attributes:
        name: the layer's name in the model.
        output_shape: with the batch.
        call: how the convolution ran; None for a layer that is no convolution.
        largest_difference: max |ours - plain|, NaN only where just one of the two is.
        largest_value: max |plain|.
        allowance: part of the largest value that rounding, in this layer and those before it, explains.
    """

    name: str
    output_shape: tuple[int, ...]
    call: CallRecord | None
    largest_difference: float
    largest_value: float
    allowance: float

    @property
    def relative_difference(self) -> float:
        """The largest difference as a part of the largest value."""
        if self.largest_difference == 0:
            return 0.0
        return self.largest_difference / self.largest_value if self.largest_value else math.inf

    @property
    def agrees(self) -> bool:
        """True when rounding explains the difference."""
        return self.relative_difference <= self.allowance

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; a number that JSON lacks becomes None."""
        call = self.call
        return {
            "layer": self.name,
            "output_shape": list(self.output_shape),
            "path": call.path if call else "torch",
            "reason": call.reason if call else "not a convolution",
            "launches": list(call.launches) if call else [],
            "config": call.config.to_json() if call and call.config else None,
            "source": call.source if call else "",
            "largest_difference": finite_or_none(self.largest_difference),
            "largest_value": finite_or_none(self.largest_value),
            "allowance": self.allowance,
            "agrees": self.agrees,
        }


def observe(
    model: nn.Module, images: Tensor, names: Sequence[str], started: Callable[[str], None]
) -> dict[str, Observed]:
    """Run `model` on `images` without gradients and keep what the layers called `names` returned.

    Args:
        started: called with a layer's name when it starts.
    """
    seen: dict[str, Observed] = {}
    with ExitStack() as stack, torch.no_grad():
        calls = stack.enter_context(trace())
        for name in names:

            def before(_layer: nn.Module, _inputs: Any, name: str = name) -> None:
                calls.clear()
                started(name)

            def after(_layer: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                seen[name] = Observed(output, list(calls))

            layer = model.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(before).remove)
            stack.callback(layer.register_forward_hook(after).remove)
        model(images)
    return seen


def plain_copy(model: nn.Module) -> nn.Module:
    """The same network of `torch.nn` layers, with the same values in parameters of its own."""
    return unconvert(deepcopy(model))


def compare(ours: dict[str, Observed], plain: dict[str, Observed]) -> list[LayerComparison]:
    """Put the layers of two `observe` runs side by side, in the order they ran."""
    rows: list[LayerComparison] = []
    allowance = 0.0
    for name, observed in ours.items():
        reference = plain[name].output
        call = observed.calls[-1] if observed.calls else None
        allowance += ROUNDING[kind_of_products(observed)] if call else 0.0
        rows.append(
            LayerComparison(
                name=name,
                output_shape=tuple(observed.output.shape),
                call=call,
                largest_difference=_largest_difference(observed.output, reference),
                largest_value=float(reference.double().abs().max()),
                allowance=allowance,
            )
        )
    return rows


def kind_of_products(observed: Observed) -> str:
    """The key of `ROUNDING` for a layer: its dtype, or for float32 how the products were taken."""
    dtype = str(observed.output.dtype).removeprefix("torch.")
    if dtype != "float32":
        return dtype
    problems = [call.problem for call in observed.calls if call.launches and call.problem]
    return problems[-1].precision if problems else "ieee"


def _largest_difference(ours: Tensor, plain: Tensor) -> float:
    ours, plain = ours.double(), plain.double()
    same = (ours == plain) | (ours.isnan() & plain.isnan())
    return float(torch.where(same, 0.0, (ours - plain).abs()).max())


def finite_or_none(value: float) -> float | None:
    """`value`, or None for an infinity or a NaN, which JSON lacks."""
    return value if math.isfinite(value) else None
