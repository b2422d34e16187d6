"""A grouped convolution followed by a 1x1 convolution as one call: its tensors and what else it asks for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Operands, Request

POINTWISE = Geometry((1, 1), (0, 0, 0, 0), (1, 1))


class SeparableOperands(NamedTuple):
    """The tensors of both convolutions.

    Attributes:
        input: `(N, C, H, W)`.
        weight: `(K, C / groups, R, S)`; the number of groups follows from the two shapes.
        bias, scale: `(K,)`.
        pointwise_weight: `(OUT_CHANNELS, K, 1, 1)`.
        pointwise_bias, pointwise_scale: `(OUT_CHANNELS,)`.
        residual: `(N, OUT_CHANNELS, OUT_H, OUT_W)`.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    pointwise_weight: Tensor
    pointwise_bias: Tensor | None = None
    pointwise_scale: Tensor | None = None
    residual: Tensor | None = None

    @property
    def first(self) -> Operands:
        """Operands of the grouped convolution."""
        return Operands(self.input, self.weight, self.bias, self.scale)

    def second(self, hidden: Tensor) -> Operands:
        """Operands of the 1x1 convolution of `hidden`."""
        return Operands(hidden, self.pointwise_weight, self.pointwise_bias, self.pointwise_scale, self.residual)


class SeparableRequest(NamedTuple):
    """What one call asks for. The fields are in the order of the operator's schema.

    Attributes:
        geometry: of the grouped convolution.
        activation, negative_slope: between the two convolutions.
        pointwise_activation, pointwise_negative_slope: after the 1x1 convolution.
        precision, backend: as of `Request`, for both.
    """

    geometry: Geometry
    activation: str = "none"
    negative_slope: float = 0.01
    pointwise_activation: str = "none"
    pointwise_negative_slope: float = 0.01
    precision: str = "default"
    backend: str = "auto"

    @property
    def first(self) -> Request:
        """The grouped convolution as a request of its own."""
        return Request(self.geometry, self.activation, self.negative_slope, False, self.precision, self.backend)

    @property
    def second(self) -> Request:
        """The 1x1 convolution as a request of its own."""
        epilogue = self.pointwise_activation, self.pointwise_negative_slope
        return Request(POINTWISE, *epilogue, False, self.precision, self.backend)
