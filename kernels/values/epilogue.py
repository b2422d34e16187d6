"""What happens to a convolution's accumulator before it is stored: the value `Epilogue`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid", "tanh")
"""Names of the fused activations, as in `torch.nn.functional`; `gelu` is the erf form (`approximate="none"`)."""

FROM_OUTPUT = frozenset({"none", "relu", "relu6", "leaky_relu", "sigmoid", "tanh"})
"""Activations whose derivative is a function of their output, so that nothing else need be saved for backward."""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """`y = activation(scale * conv + bias + residual)`, in that order, computed in fp32.

    Attributes:
        activation: one of `ACTIVATIONS`. All of them propagate NaN as torch does.
        negative_slope: slope of `leaky_relu` below zero (torch's default 0.01); ignored by the others.
        bias: a vector of shape `(out_channels,)` is added.
        scale: the convolution is multiplied by a vector of shape `(out_channels,)` (a folded BatchNorm).
        residual: a tensor of the output's shape is added before the activation.
        save_preactivation: also store the argument of the activation (backward of silu, gelu and hardswish).
        shuffle: groups of ShuffleNet's channel shuffle (arXiv 1707.01083), applied to the output as it is stored:
            channel `i * (out_channels / shuffle) + j` goes to `j * shuffle + i`. Bias, scale, residual and the saved
            preactivation stay in the order before. 1 shuffles nothing.
    """

    activation: str = "none"
    negative_slope: float = 0.01
    bias: bool = False
    scale: bool = False
    residual: bool = False
    save_preactivation: bool = False
    shuffle: int = 1

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; accepted: {', '.join(ACTIVATIONS)}")
        if not math.isfinite(self.negative_slope):
            raise ValueError(f"negative_slope must be finite, but got {self.negative_slope!r}")
        if self.shuffle < 1:
            raise ValueError(f"shuffle must be at least 1, but got {self.shuffle}")
        if self.activation != "leaky_relu" and self.negative_slope != 0.01:
            object.__setattr__(self, "negative_slope", 0.01)  # equal epilogues compare equal

    @property
    def is_identity(self) -> bool:
        """True when the convolution is stored as it is."""
        return self.activation == "none" and not (self.bias or self.scale or self.residual) and self.shuffle == 1

    def __str__(self) -> str:
        parts = [name for name in ("scale", "bias", "residual") if getattr(self, name)]
        if self.activation == "leaky_relu":
            parts.append(f"leaky_relu({self.negative_slope:g})")
        elif self.activation != "none":
            parts.append(self.activation)
        if self.save_preactivation:
            parts.append("saves preactivation")
        if self.shuffle > 1:
            parts.append(f"shuffle({self.shuffle})")
        return "+".join(parts) or "identity"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Epilogue:
        """The inverse of `to_json`."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown epilogue fields {sorted(unknown)}")
        return cls(**data)
