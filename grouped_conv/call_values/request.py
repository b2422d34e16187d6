"""One call of a convolution, its tensors and what else it asks for, on its way from the Python front to a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from grouped_conv.call_values.geometry import Geometry


class Operands(NamedTuple):
    """The tensors of `activation(scale * conv2d(input, weight) + bias + residual)`.

    Attributes:
        input: `(N, C, H, W)`.
        weight: `(K, C / groups, R, S)`; the number of groups follows from the two shapes.
        bias, scale: `(K,)`.
        residual: `(N, K, OUT_H, OUT_W)`.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None

    @property
    def groups(self) -> int:
        """Number of groups that the shapes imply."""
        return self.input.shape[1] // self.weight.shape[1]


@dataclass(frozen=True, slots=True)
class Request:
    """What one call asks for.

    Attributes:
        geometry: stride, padding and dilation.
        activation: name of the fused activation, `none` for none.
        negative_slope: slope of `leaky_relu`.
        save_preactivation: also return the activation's argument.
        precision: `ieee`, `tf32`, or `default` for torch's own flag at the time of the call.
        backend: `aten`, `kernel`, or `auto` for the policy's choice.
        input_shuffle: groups of a channel shuffle that the input goes through first.
        output_shuffle: groups of a channel shuffle that the output goes through last.
    """

    geometry: Geometry
    activation: str = "none"
    negative_slope: float = 0.01
    save_preactivation: bool = False
    precision: str = "default"
    backend: str = "auto"
    input_shuffle: int = 1
    output_shuffle: int = 1

    @property
    def is_plain(self) -> bool:
        """True when nothing but a bias follows the convolution and no channels are shuffled."""
        return self.activation == "none" and not self.save_preactivation and not self.shuffles

    @property
    def shuffles(self) -> bool:
        """True when channels are shuffled, before or after."""
        return self.input_shuffle > 1 or self.output_shuffle > 1

    def without_shuffles(self) -> Request:
        """The same request, channels in their order."""
        return replace(self, input_shuffle=1, output_shuffle=1)

    def saving_preactivation(self) -> Request:
        """The same request, also returning the activation's argument."""
        return self if self.save_preactivation else replace(self, save_preactivation=True)

    def convolution_only(self) -> Request:
        """The same convolution with nothing before or behind it."""
        return Request(self.geometry, precision=self.precision, backend=self.backend)
