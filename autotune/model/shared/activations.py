"""What activations cost in instructions, counted in compiled code, one table per place where they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Costs(NamedTuple):
    """Instructions per value, by activation.

    Attributes:
        known: of the cheap activations.
        other: of the rest, which need an exponential.
    """

    known: Mapping[str, int]
    other: int

    def of(self, activation: str) -> int:
        """Instructions per value."""
        return self.known.get(activation, self.other)


APPLIED = Costs({"none": 0, "relu": 0, "relu6": 1, "leaky_relu": 2, "hardswish": 5}, 14)
"""Of the depthwise forward kernel, per output; a ReLU is part of the conversion to fp16."""
DERIVED_IN_THREADS = Costs({"none": 0, "relu": 3, "relu6": 5, "leaky_relu": 4, "hardswish": 10}, 25)
"""Of the depthwise gradients, per gradient that a thread loads: the derivative and the load of its operand."""
DERIVED_IN_TILES = Costs(
    {"none": 0, "relu": 3, "tanh": 5, "relu6": 6, "sigmoid": 6, "leaky_relu": 7, "hardswish": 13, "silu": 18}, 44
)
"""The same for gradients that load tiles for dot products, which costs more: converted layouts, registers to shared
memory. In AlexNet's conv2 and conv4 a 128x64x64 loop of 8 warps grows on sm_80 from 148 instructions to 299 with relu
and to 1272 with silu, on sm_90 from 105 to 219 and 700."""
