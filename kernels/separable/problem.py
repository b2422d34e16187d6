"""A grouped convolution and the 1x1 convolution that follows it, described completely: `SeparableProblem`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class SeparableProblem:
    """A grouped convolution followed by a dense 1x1 convolution: a separable block, a root module.

    `y = activation2(scale2 * conv1x1(h) + bias2 + residual)` with
    `h = activation1(scale1 * grouped_conv(x) + bias1)` rounded to the dtype. Hashable, to JSON and back.

    Attributes:
        first: the grouped convolution with its epilogue, which must be without residual and saved preactivation.
        out_channels: output channels of the 1x1 convolution.
        epilogue: what follows the 1x1 convolution; it cannot save its preactivation.
        pointwise_channels_last: whether torch takes the 1x1 weight for channels_last, and so its output; the weight's
            memory is the same either way.
    """

    first: ConvProblem
    out_channels: int
    epilogue: Epilogue = field(default_factory=Epilogue)
    pointwise_channels_last: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.out_channels, bool) or not isinstance(self.out_channels, int) or self.out_channels <= 0:
            raise ValueError(f"out_channels must be a positive integer, but got {self.out_channels!r}")
        if self.first.epilogue.residual or self.first.epilogue.save_preactivation:
            raise ValueError(
                f"the first convolution cannot have the epilogue {self.first.epilogue}: "
                "scale, bias and an activation are accepted between the two"
            )
        if self.epilogue.save_preactivation:
            raise ValueError("the second convolution cannot save its preactivation")

    @property
    def second(self) -> ConvProblem:
        """The 1x1 convolution as a problem of its own, as it runs when the two are not fused."""
        first = self.first
        return ConvProblem(
            batch=first.batch,
            layout=GroupLayout.uniform(first.out_channels, self.out_channels),
            in_size=first.out_size,
            kernel_size=(1, 1),
            dtype=first.dtype,
            precision=first.precision,
            input_channels_last=first.output_channels_last,
            weight_channels_last=self.pointwise_channels_last,
            epilogue=self.epilogue,
        )

    @property
    def direction(self) -> str:
        """The direction of both convolutions."""
        return self.first.direction

    @property
    def batch(self) -> int:
        """Images N."""
        return self.first.batch

    @property
    def dtype(self) -> str:
        """Dtype of every tensor; sums are kept in fp32."""
        return self.first.dtype

    @property
    def precision(self) -> str:
        """How float32 products of both are taken."""
        return self.first.precision

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return self.first.item_size

    @property
    def mid_channels(self) -> int:
        """Channels between the two convolutions."""
        return self.first.out_channels

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return self.batch * math.prod(self.first.out_size)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """`(N, out_channels, OUT_H, OUT_W)`."""
        return (self.batch, self.out_channels, *self.first.out_size)

    @property
    def output_channels_last(self) -> bool:
        """ATen's rule over both convolutions: any channels_last input or weight gives a channels_last output."""
        return self.second.output_channels_last

    @property
    def pointwise_shape(self) -> tuple[int, int, int, int]:
        """Shape of the 1x1 convolution's weight."""
        return (self.out_channels, self.mid_channels, 1, 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both convolutions."""
        return self.first.macs + self.second.macs

    @property
    def saved_bytes(self) -> int:
        """Bytes that fusing keeps off DRAM: the intermediate tensor, written and read once."""
        return 2 * self.pixels * self.mid_channels * self.item_size

    @property
    def min_bytes(self) -> int:
        """Bytes that must cross DRAM when the two are one kernel."""
        return self.first.min_bytes + self.second.min_bytes - self.saved_bytes

    def __str__(self) -> str:
        return f"{self.first}, then 1x1 K={self.out_channels} {self.epilogue}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        return {
            "first": self.first.to_json(),
            "out_channels": self.out_channels,
            "epilogue": self.epilogue.to_json(),
            "pointwise_channels_last": self.pointwise_channels_last,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SeparableProblem:
        """The inverse of `to_json`."""
        return cls(
            ConvProblem.from_json(data["first"]),
            data["out_channels"],
            Epilogue.from_json(data["epilogue"]),
            data["pointwise_channels_last"],
        )
