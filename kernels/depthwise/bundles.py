"""Arguments that the helpers of the depthwise kernels take whole; names in capitals are known when compiling.

A bundle of tensors whose strides may be constants is made in the call that takes it: assigned to a local, its constants
would become tensors of 32 bits, and a local annotated `tl.constexpr` cannot hold tensors in Triton 3.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import triton
import triton.language as tl


class TileAxis(NamedTuple):
    """The rows or the columns of the window and of a register tile.

    Attributes:
        TAPS: rows or columns of the kernel, or those that one piece of code multiplies.
        STRIDE, PAD, DILATION: of the convolution; the padding is the one before the first row or column.
        TILE: rows or columns of a register tile.
    """

    TAPS: int
    STRIDE: int
    PAD: int
    DILATION: int
    TILE: int


@triton.constexpr_function
def plain(axis: Iterable[int]) -> TileAxis:
    """A `TileAxis` as a `constexpr_function` needs it: Triton 3.6 passes it without names, its numbers wrapped."""
    return TileAxis(*[int(field) for field in axis])


class Channels(NamedTuple):
    """The channels of a program.

    Attributes:
        BLOCK: input channels.
        PER_GROUP: output channels per input channel, in the problem.
        MULTIPLIERS: output channels per input channel, in one step of the program.
        EVEN: whether blocks never reach past the last channel, so that loads need no mask.
        WIDE: whether MULTIPLIERS are all and so few (1, 2 or 4) that a block's output channels are moved as one tensor.
    """

    BLOCK: int
    PER_GROUP: int
    MULTIPLIERS: int
    EVEN: bool
    WIDE: bool


class Code(NamedTuple):
    """How the sums of a tile are coded.

    Attributes:
        ROW_LOOP: loop over kernel rows, and over CHUNK columns at a time; the other columns of a row follow.
        RESIDENT: load all weights before the first tile (forward).
        INTERIOR: blocks whose windows are inside the image skip the bounds checks (forward).
        STEP: rows of the kernel from one that a class of input rows takes to the next (input gradient).
    """

    ROW_LOOP: bool
    CHUNK: int
    RESIDENT: bool = False
    INTERIOR: bool = False
    STEP: int = 1


class Taps(NamedTuple):
    """The weights of a program's channels.

    Attributes:
        base: pointers to the first tap of the first multiplier, [BLOCK_P, BLOCK_C].
        ok: which channels exist, [1, BLOCK_C].
        scale: the scale of each multiplier, [BLOCK_P, BLOCK_C] each, if weights are to be loaded times it, or None.
        stride_m, stride_r, stride_s: elements from one multiplier, kernel row and kernel column to the next.
    """

    base: tl.tensor
    ok: tl.tensor
    scale: tl.tensor
    stride_m: tl.tensor
    stride_r: tl.tensor
    stride_s: tl.tensor


class Weights(NamedTuple):
    """Pointers to weights and scale (or None); strides by multiplier, kernel row, kernel column and input channel."""

    w: tl.tensor
    scale: tl.tensor
    stride_m: tl.tensor
    stride_r: tl.tensor
    stride_s: tl.tensor
    stride_c: tl.tensor


class Patch(NamedTuple):
    """The inputs that register tiles read: pointers [BLOCK_P, BLOCK_C] and coordinates [BLOCK_P, 1] of the first."""

    base: tl.tensor
    h: tl.tensor
    w: tl.tensor
    height: tl.tensor
    width: tl.tensor
    stride_h: tl.tensor
    stride_w: tl.tensor


class Loop(NamedTuple):
    """Loops over the taps, with numbers that the compiler does not know: the first kernel row, rows, column chunks."""

    first: tl.tensor
    rows: tl.tensor
    chunks: tl.tensor


class Affine(NamedTuple):
    """The scale and the bias of each multiplier, [BLOCK_P, BLOCK_C] each; no scale where sums begin with the bias."""

    scale: tl.tuple
    bias: tl.tuple


class Pixels(NamedTuple):
    """The first output of each register tile, [BLOCK_P] each, which tiles exist, and the size of an output image."""

    image: tl.tensor
    h: tl.tensor
    w: tl.tensor
    ok: tl.tensor
    height: tl.tensor
    width: tl.tensor


class Share(NamedTuple):
    """A program's input channels `c` and output channels `k`, and which of them exist, [1, channels].

    `k` are all output channels of `c` where those are moved as one tensor (WIDE); otherwise nothing reads it.
    """

    c: tl.tensor
    c_ok: tl.tensor
    k: tl.tensor
    k_ok: tl.tensor


class Gradients(NamedTuple):
    """The output's gradient `dy` and the tensor `known` from which the activation's derivative is computed.

    Attributes:
        dy, known: two pointers; or, for a program's channels and pixels, a tuple of tensors of pointers each: one per
            multiplier, or one for all of them where CHANNELS.WIDE.
        height, width: size of an output image.
        g, k: strides of `dy` and of `known`.
    """

    dy: tl.tuple
    known: tl.tuple
    height: tl.tensor
    width: tl.tensor
    g: tl.tuple
    k: tl.tuple


class Place(NamedTuple):
    """Where a program's register tiles begin in the output: coordinates, and offsets in `dy` and in `known`."""

    h: tl.tensor
    w: tl.tensor
    g: tl.tensor
    k: tl.tensor
