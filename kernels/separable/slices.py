"""One slice of the intermediate channels of a separable block: the grouped convolution of a tile's pixels, in fp32.

Depthwise slices are summed directly, tap by tap; others are products of the window with block-diagonal weights.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.index import tap_mask
from grouped_conv.kernels.device_code.reduction import multiply_add


class Groups(NamedTuple):
    """The groups of the first convolution, and their input and output channels."""

    COUNT: int
    C: int
    K: int


class Cut(NamedTuple):
    """How a program walks the intermediate channels.

    Attributes:
        DIRECT: whether a slice is summed directly, one channel per group.
        PACK: groups of a slice; 1 where a slice is one of PARTS of a group.
        TILE, USED: channels of a slice, and how many of them there are between one slice and the next.
        EVEN: whether every slice is filled, so that loads along it need no mask.
        DEPTH, STEPS: input channels of one product, and products per tap.
        UNROLL, NUM_STAGES: whether the steps of a slice are unrolled, or pipelined in that many stages.
        PRECISION: how float32 products are taken.
    """

    DIRECT: bool
    PACK: int
    PARTS: int
    TILE: int
    USED: int
    EVEN: bool
    DEPTH: int
    STEPS: int
    UNROLL: bool
    NUM_STAGES: int
    PRECISION: str


class Inputs(NamedTuple):
    """Pointers to the first tap of each pixel, [BLOCK_M], what its window reaches (`Reach`), strides of the input."""

    rows: tl.tensor
    reach: tl.tuple
    stride_h: tl.tensor
    stride_w: tl.tensor


@triton.jit
def load_pointwise(w2_ptr, mid, mid_ok, channel, channel_ok, MID: tl.constexpr, EVEN_K: tl.constexpr):
    """[TILE, BLOCK_N] of the 1x1 weight [OUT_CHANNELS, MID]; `channel_ok` is None where all channels exist."""
    pointers = w2_ptr + (channel.to(tl.int64) * MID)[None, :] + mid[:, None]
    if EVEN_K and channel_ok is None:
        return tl.load(pointers)
    elif EVEN_K:
        return tl.load(pointers, mask=channel_ok[None, :], other=0.0)
    elif channel_ok is None:
        return tl.load(pointers, mask=mid_ok[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=mid_ok[:, None] & channel_ok[None, :], other=0.0)


@triton.jit
def window_tap(inputs, tap, TAPS: tl.constexpr):
    """(pointers to one tap's pixels [BLOCK_M], whether they are inside [BLOCK_M, 1])."""
    row = tap // TAPS.COLUMNS
    column = tap % TAPS.COLUMNS
    ok = tap_mask(inputs.reach, tap, row, column, TAPS)
    return inputs.rows + (row * (TAPS.DOWN * inputs.stride_h) + column * (TAPS.RIGHT * inputs.stride_w)), ok


@triton.jit
def direct_tap(acc, inputs, w_ptr, mid, mid_ok, tap, EVEN: tl.constexpr, TAPS: tl.constexpr):
    """Acc + x * w of one tap, channel by channel."""
    rows, ok = window_tap(inputs, tap, TAPS)
    w = tl.load(w_ptr + mid * (TAPS.ROWS * TAPS.COLUMNS) + tap, mask=mid_ok, other=0.0)
    x = tl.load(rows[:, None] + mid[None, :], mask=ok if EVEN else ok & mid_ok[None, :], other=0.0)
    return acc + x.to(tl.float32) * w.to(tl.float32)[None, :]


@triton.jit
def direct_slice(inputs, w_ptr, mid, mid_ok, CUT: tl.constexpr, TAPS: tl.constexpr):
    """One channel per group: sums of channels `mid`, [BLOCK_M, TILE]."""
    acc = tl.zeros((inputs.rows.shape[0], CUT.TILE), tl.float32)
    if CUT.UNROLL:
        for tap in tl.static_range(TAPS.ROWS * TAPS.COLUMNS):
            acc = direct_tap(acc, inputs, w_ptr, mid, mid_ok, tap, CUT.EVEN, TAPS)
    else:
        for tap in tl.range(0, TAPS.ROWS * TAPS.COLUMNS, num_stages=1):
            acc = direct_tap(acc, inputs, w_ptr, mid, mid_ok, tap, CUT.EVEN, TAPS)
    return acc


@triton.jit
def dot_step(
    acc, inputs, w_ptr, group, first, n_ok, only, trip, GROUPS: tl.constexpr, CUT: tl.constexpr, TAPS: tl.constexpr
):
    """Acc + x @ w of one tap and DEPTH input channels; `only` is the one group of the pack to read, or None."""
    PACK: tl.constexpr = CUT.PACK
    DEPTH: tl.constexpr = CUT.DEPTH
    PRECISION: tl.constexpr = CUT.PRECISION
    EVEN: tl.constexpr = PACK * GROUPS.C == DEPTH and GROUPS.COUNT % PACK == 0 if PACK > 1 else GROUPS.C % DEPTH == 0
    tap = trip // CUT.STEPS
    rows, ok = window_tap(inputs, tap, TAPS)
    k = tl.arange(0, DEPTH)
    n = tl.arange(0, CUT.TILE)
    c = trip % CUT.STEPS * DEPTH + k
    if PACK > 1:
        member = k // GROUPS.C  # the group of the pack that a channel belongs to
        k_ok = (member < PACK) & (member < GROUPS.COUNT - group)
        w_ok = (member[:, None] == (n // GROUPS.K)[None, :]) & k_ok[:, None] & n_ok[None, :]
        column = k % GROUPS.C
    else:
        k_ok = c < GROUPS.C
        w_ok = k_ok[:, None] & n_ok[None, :]
        column = c
    x_ok = ok if EVEN else ok & k_ok[None, :]
    if only is not None:
        x_ok = x_ok & (member == only)[None, :]
    x = tl.load(rows[:, None] + (group * GROUPS.C + c)[None, :], mask=x_ok, other=0.0)  # [BLOCK_M, DEPTH]
    w_columns = w_ptr + (first + n).to(tl.int64) * (TAPS.ROWS * TAPS.COLUMNS * GROUPS.C)
    w = tl.load(w_columns[None, :] + (tap * GROUPS.C + column)[:, None], mask=w_ok, other=0.0)  # [DEPTH, TILE]
    return multiply_add(x, w, acc, PRECISION)


@triton.jit
def dot_slice(
    inputs, w_ptr, group, first, n_ok, only, GROUPS: tl.constexpr, CUT: tl.constexpr, TAPS: tl.constexpr,
    UNROLL: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Sums of a pack of groups, or of part of one group, from intermediate channel `first` on, [BLOCK_M, TILE]."""
    acc = tl.zeros((inputs.rows.shape[0], CUT.TILE), tl.float32)
    if UNROLL:
        for trip in tl.static_range(TAPS.ROWS * TAPS.COLUMNS * CUT.STEPS):
            acc = dot_step(acc, inputs, w_ptr, group, first, n_ok, only, trip, GROUPS, CUT, TAPS)
    else:
        for trip in tl.range(0, TAPS.ROWS * TAPS.COLUMNS * CUT.STEPS, num_stages=NUM_STAGES):
            acc = dot_step(acc, inputs, w_ptr, group, first, n_ok, only, trip, GROUPS, CUT, TAPS)
    return acc


@triton.jit
def isolated_slice(inputs, w_ptr, group, first, n_ok, GROUPS: tl.constexpr, CUT: tl.constexpr, TAPS: tl.constexpr):
    """`dot_slice` of a pack, one group at a time: nothing of one group reaches another's sums."""
    owner = tl.arange(0, CUT.TILE) // GROUPS.K
    acc = tl.zeros((inputs.rows.shape[0], CUT.TILE), tl.float32)
    for member in tl.range(0, CUT.PACK, num_stages=1):
        own = dot_slice(inputs, w_ptr, group, first, n_ok, member, GROUPS, CUT, TAPS, False, 1)
        acc = tl.where((owner == member)[None, :], own, acc)
    return acc
