"""What the packed kernels pass to their steps as one value; `device_code.bundles` says how such bundles are used."""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides, Window
from grouped_conv.kernels.values.problem import ConvProblem


class Side(NamedTuple):
    """The input or the output channels of a pack of GROUPS groups, in a tile of BLOCK columns; EVEN if they fill it."""

    GROUPS: int
    PER_GROUP: int
    SHUFFLE: int
    BLOCK: int
    EVEN: bool


class Pack(NamedTuple):
    """Both sides of a pack of groups."""

    IN: Side
    OUT: Side

    @classmethod
    def of(cls, problem: ConvProblem, groups: int, *, in_block: int, out_block: int) -> Pack:
        """Packs of `groups` groups, in tiles of `in_block` and `out_block` columns."""
        c, k, shuffle = problem.c_per_group, problem.k_per_group, problem.epilogue.shuffle
        out_shuffle = problem.out_channels // shuffle if shuffle > 1 else 1
        even = problem.groups % groups == 0
        return cls(
            Side(groups, c, problem.input_shuffle, in_block, even and groups * c == in_block),
            Side(groups, k, out_shuffle, out_block, even and groups * k == out_block),
        )


class Tile(NamedTuple):
    """BLOCK strips of STRIP neighboring pixels; WIDE if the strips of all images need 64-bit numbers.

    Rows of a window are loaded AHEAD of their products. RESIDENT weights stay in registers or shared memory. ISOLATE
    keeps non-finite values in their group.
    """

    BLOCK: int
    STRIP: int
    WIDE: bool
    PRECISION: str
    AHEAD: int = 0
    RESIDENT: bool = True
    ISOLATE: bool = True


class ClassTaps(NamedTuple):
    """The taps that reach one class of input pixels, STEP_H and STEP_W apart; EVEN if all classes have the same.

    `READ` is the window in which a class's pixels see the output, with as many taps as the largest class has.
    """

    READ: Window
    STEP_H: int
    STEP_W: int
    EVEN: bool


class Share(NamedTuple):
    """A program's pack of groups, and its class of input rows and columns."""

    pack: tl.tensor
    class_h: tl.tensor
    class_w: tl.tensor


class Walk(NamedTuple):
    """A program's way through the strips of `images` images of `rows` rows of `strips`: its `tiles` follow each other.

    From a tile to the next it is `step_n` images, `step_h` rows and `step_w` strips.
    """

    program: tl.tensor
    images: tl.tensor
    rows: tl.tensor
    strips: tl.tensor
    tiles: tl.tensor
    step_n: tl.tensor
    step_h: tl.tensor
    step_w: tl.tensor


class Place(NamedTuple):
    """Image, row, and number within the row of each strip of a tile, [BLOCK] each."""

    image: tl.tensor
    row: tl.tensor
    strip: tl.tensor


class Image(NamedTuple):
    """A tensor of images and its sizes."""

    ptr: tl.tensor
    channels: tl.tensor
    height: tl.tensor
    width: tl.tensor
    strides: Strides


class Gradient(NamedTuple):
    """The output's gradient: with the values that its activation's derivative is computed from, and the scale."""

    ptr: tl.tensor
    known: tl.tensor
    scale: tl.tensor
    channels: tl.tensor
    height: tl.tensor
    width: tl.tensor
    strides: Strides
    known_strides: Strides


class Columns(NamedTuple):
    """The channels of one side of a pack in the order of memory, [BLOCK] each.

    Attributes:
        memory: position in memory.
        logical: number of the channel.
        index: number within its group.
        member: group within the pack.
        ok: is there such a channel?
    """

    memory: tl.tensor
    logical: tl.tensor
    index: tl.tensor
    member: tl.tensor
    ok: tl.tensor


class Weights(NamedTuple):
    """The offsets of a pack's weights for the first tap, and which are of a group, [BLOCK_K, BLOCK_N] each."""

    ptr: tl.tensor
    offsets: tl.tensor
    diagonal: tl.tensor


class Source(NamedTuple):
    """The windows of a tile's pixels in an image: where they begin, and pointers to that pixel, [BLOCK, channels].

    For a gradient `known` points to what its derivative is computed from; `scale` is [1, channels] or None.
    """

    pointers: tl.tensor
    ok: tl.tensor
    h0: tl.tensor
    w0: tl.tensor
    height: tl.tensor
    width: tl.tensor
    strides: Strides
    known: tl.tensor
    known_strides: Strides
    scale: tl.tensor
