"""Arguments that belong together, as `NamedTuple`s: jit helpers take them whole, so that their signatures stay short.

Bundles with fields in capitals are known when compiling (`tl.constexpr`). A launch passes them to the kernel as one
object, whose text is part of Triton's cache key. The others hold tensors: a kernel's run-time arguments are flat
(Triton 3.6 interprets no tuples there), and its body makes the bundles.

What all supported versions of Triton compile:
- A bundle of tensors is assigned to a plain local. Its integers become tensors there; one that must stay a constant,
  or a string, belongs in a bundle in capitals.
- A bundle of constants that a kernel makes is assigned to a local annotated `tl.constexpr`.
- A `constexpr_function` takes the fields of a bundle, not the bundle.
- A string out of a bundle goes to a helper through a local annotated `tl.constexpr` (Triton 3.6).
"""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl


class Window(NamedTuple):
    """The window of a convolution; padding above and left."""

    KERNEL_H: int
    KERNEL_W: int
    STRIDE_H: int
    STRIDE_W: int
    PAD_H: int
    PAD_W: int
    DILATION_H: int
    DILATION_W: int


class Finish(NamedTuple):
    """What follows the sums: the activation, channels per store, the shuffle (of OUT_CHANNELS in SHUFFLE groups)."""

    ACTIVATION: str
    NEGATIVE_SLOPE: float
    VECTOR: int
    SHUFFLE: int
    OUT_CHANNELS: int


class Derivative(NamedTuple):
    """The activation whose derivative an output's gradient is multiplied by; the channel order of both.

    Both are shuffled (OUT_CHANNELS in SHUFFLE groups) as the output is, but a preactivation is not: SHUFFLE_KNOWN is 1.
    """

    ACTIVATION: str
    NEGATIVE_SLOPE: float
    SHUFFLE: int
    SHUFFLE_KNOWN: int
    OUT_CHANNELS: int


class Taps(NamedTuple):
    """The taps that a row of a tile reads: how many down and across, how far apart, and how `tap_mask` finds them.

    Attributes:
        MODE: "word" (a bit per tap), "row_column" (a bit per row and column) or "direct" (comparisons in the loop).
    """

    ROWS: int
    COLUMNS: int
    DOWN: int
    RIGHT: int
    MODE: str


class Strides(NamedTuple):
    """Elements from one image, channel, row and column of a tensor to the next."""

    n: tl.tensor
    c: tl.tensor
    h: tl.tensor
    w: tl.tensor


class Reach(NamedTuple):
    """The place of the first tap of each row of a tile, [BLOCK_M], which taps are inside, and the image's size."""

    bits: tl.tensor
    h: tl.tensor
    w: tl.tensor
    height: tl.tensor
    width: tl.tensor


class Epilogue(NamedTuple):
    """The tensors of the epilogue, absent ones None, and the channel strides of the output and the residual."""

    scale: tl.tensor
    bias: tl.tensor
    residual: tl.tensor
    pre: tl.tensor
    y: tl.tensor
    stride_yc: tl.tensor
    stride_rc: tl.tensor


class Gradient(NamedTuple):
    """The output's gradient, what its activation's derivative is known from, and the scale; absent ones are None.

    Attributes:
        g_rows, k_rows: offsets or pointers of the first tap of each row of a tile, [BLOCK_M], in both.
    """

    dy: tl.tensor
    known: tl.tensor
    scale: tl.tensor
    g_rows: tl.tensor
    k_rows: tl.tensor
    stride_gh: tl.tensor
    stride_gw: tl.tensor
    stride_kh: tl.tensor
    stride_kw: tl.tensor
