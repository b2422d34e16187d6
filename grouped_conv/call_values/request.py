"""The tensors of one convolution call and everything else it asks for, from the Python functions down to the plan.

Requests are tuples, so that hashing one as part of a plan's key runs no Python code.
"""

from __future__ import annotations

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


class Request(NamedTuple):
    """What one call asks for. The fields are in the order of the operators' schemas.

    Attributes:
        geometry: stride, padding and dilation.
        activation: name of the fused activation, `none` for none.
        negative_slope: slope of `leaky_relu`.
        save_preactivation: also return the activation's argument.
        precision: `ieee`, `tf32`, or `default` for torch's own flag at the time of the call.
        backend: `aten`, `kernel`, or `auto` for the policy's choice.
        input_shuffle: groups of a channel shuffle applied to the input first.
        output_shuffle: groups of a channel shuffle applied to the output last.
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
        """True when only a bias follows the convolution and no channels are shuffled."""
        shuffles = self.input_shuffle > 1 or self.output_shuffle > 1
        return self.activation == "none" and not self.save_preactivation and not shuffles

    def without_shuffles(self) -> Request:
        """The same request, with the channels left in their order."""
        return self._replace(input_shuffle=1, output_shuffle=1)

    def saving_preactivation(self) -> Request:
        """The same request, also returning the activation's argument."""
        return self if self.save_preactivation else self._replace(save_preactivation=True)

    def convolution_only(self) -> Request:
        """The same convolution without epilogue or shuffles."""
        return Request(self.geometry, precision=self.precision, backend=self.backend)


class RaggedRequest(NamedTuple):
    """A call with unequal groups: `layout` as `layout_text` writes it, and what the call asks for."""

    layout: str
    request: Request


class Wanted(NamedTuple):
    """Which gradients a call computes."""

    input: bool
    weight: bool
    bias: bool
    scale: bool
    residual: bool


class Gradients(NamedTuple):
    """The gradients of a convolution's operands; None for those that were not wanted."""

    input: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None


class BackwardOperands(NamedTuple):
    """The tensors that the gradients are computed from.

    Attributes:
        grad_output: gradient of the output.
        input: None where no gradient reads it.
        weight: of unequal groups, the flat storage of all weights.
        scale: `(K,)`.
        known: what the activation's derivative is read from (`by_torch.gradients.Saved`).
    """

    grad_output: Tensor
    input: Tensor | None
    weight: Tensor
    scale: Tensor | None
    known: Tensor | None


class UnequalGroups(NamedTuple):
    """What the flat storage of unequal groups' weights does not say."""

    layout: str
    kernel_size: tuple[int, int]


class BackwardRequest(NamedTuple):
    """Everything that the gradients of one call depend on, besides tensors.

    Attributes:
        request: the forward pass's.
        input_shape: `(N, C, H, W)`.
        input_channels_last: the input's memory format, which its gradient has too.
        unequal: for unequal groups.
    """

    request: Request
    input_shape: tuple[int, ...]
    input_channels_last: bool
    wanted: Wanted
    unequal: UnequalGroups | None = None
