"""How a convolution's window moves: the value that operators, formulas and plans use, and users' spellings of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grouped_conv.kernels.values.problem import Pair, Sides, pair, sides


@dataclass(frozen=True, slots=True)
class Geometry:
    """Stride and dilation as `(height, width)`, padding as `(top, bottom, left, right)`."""

    stride: Pair
    padding: Sides
    dilation: Pair

    @property
    def symmetric_padding(self) -> Pair:
        """The part of the padding that is the same on both sides, which ATen's convolution takes."""
        top, bottom, left, right = self.padding
        return min(top, bottom), min(left, right)

    @property
    def extra_padding(self) -> tuple[int, int, int, int]:
        """What remains, as `torch.nn.functional.pad` takes it: `(left, right, top, bottom)`."""
        top, bottom, left, right = self.padding
        high, wide = self.symmetric_padding
        return left - wide, right - wide, top - high, bottom - high


def parse_geometry(
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
    kernel_size: Pair,
) -> Geometry:
    """The geometry in users' words: integers, pairs, padding also per side, `"same"` or `"valid"`.

    Raises:
        ValueError: when an argument is none of these.
    """
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    return Geometry(strides, sides(padding, kernel_size, strides, dilations), dilations)


def as_tuple(value: Sequence[int] | int | str) -> int | str | tuple[int, ...]:
    """Lists, nested ones too, as tuples, so that a call's arguments can be looked up."""
    if isinstance(value, int | str):
        return value
    return tuple(as_tuple(item) for item in value)  # type: ignore[misc]
