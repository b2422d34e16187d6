"""Stride, padding and dilation of a convolution: one value for the package, and how users may write it."""

from __future__ import annotations

from typing import NamedTuple

from grouped_conv.kernels.values.problem import Pair, Sides, pair, sides


class Geometry(NamedTuple):
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
    """The geometry from what users write: integers, pairs, and for padding also four sides, `"same"` or `"valid"`.

    Raises:
        ValueError: when an argument is none of these.
    """
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    return Geometry(strides, sides(padding, kernel_size, strides, dilations), dilations)
