"""One slice of the intermediate channels of a separable block: the grouped convolution of a tile's pixels, in fp32.

Depthwise slices are summed directly, tap by tap; others are products of the window with block-diagonal weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Reach, Taps
from grouped_conv.kernels.device_code.index import tap_mask
from grouped_conv.kernels.device_code.reduction import multiply_add


@triton.jit
def load_pointwise(w2_ptr, mid, mid_ok, channel, channel_ok, MID: tl.constexpr, EVEN_K: tl.constexpr,
                   EVEN_N: tl.constexpr):  # fmt: skip
    """[TILE, BLOCK_N] of the 1x1 weight [OUT_CHANNELS, MID]."""
    pointers = w2_ptr + (channel.to(tl.int64) * MID)[None, :] + mid[:, None]
    if EVEN_K and EVEN_N:
        return tl.load(pointers)
    elif EVEN_K:
        return tl.load(pointers, mask=channel_ok[None, :], other=0.0)
    elif EVEN_N:
        return tl.load(pointers, mask=mid_ok[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=mid_ok[:, None] & channel_ok[None, :], other=0.0)


@triton.jit
def window_tap(window, tap, KERNEL_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
               TAP_MODE: tl.constexpr):  # fmt: skip
    """(pointers to one tap's pixels [BLOCK_M], whether they are inside [BLOCK_M, 1])."""
    x_rows, bits, ih0, iw0, IN_H, IN_W, stride_xh, stride_xw = window
    kernel_h = tap // KERNEL_W
    kernel_w = tap % KERNEL_W
    TAPS: tl.constexpr = Taps(0, KERNEL_W, DILATION_H, DILATION_W, TAP_MODE)
    ok = tap_mask(Reach(bits, ih0, iw0, IN_H, IN_W), tap, kernel_h, kernel_w, TAPS)
    return x_rows + (kernel_h * (DILATION_H * stride_xh) + kernel_w * (DILATION_W * stride_xw)), ok


@triton.jit
def direct_tap(acc, window, w_ptr, mid, mid_ok, tap, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
               DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, EVEN: tl.constexpr,
               TAP_MODE: tl.constexpr):  # fmt: skip
    """Acc + x * w of one tap, channel by channel."""
    rows, ok = window_tap(window, tap, KERNEL_W, DILATION_H, DILATION_W, TAP_MODE)
    w = tl.load(w_ptr + mid * (KERNEL_H * KERNEL_W) + tap, mask=mid_ok, other=0.0)
    x = tl.load(rows[:, None] + mid[None, :], mask=ok if EVEN else ok & mid_ok[None, :], other=0.0)
    return acc + x.to(tl.float32) * w.to(tl.float32)[None, :]


@triton.jit
def direct_slice(window, w_ptr, mid, mid_ok, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
                 DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
                 EVEN: tl.constexpr, UNROLL: tl.constexpr, TAP_MODE: tl.constexpr):  # fmt: skip
    """One channel per group: sums of channels `mid`, [BLOCK_M, TILE]."""
    acc = tl.zeros((BLOCK_M, TILE), tl.float32)
    if UNROLL:
        for tap in tl.static_range(KERNEL_H * KERNEL_W):
            acc = direct_tap(acc, window, w_ptr, mid, mid_ok, tap, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, EVEN,
                             TAP_MODE)  # fmt: skip
    else:
        for tap in tl.range(0, KERNEL_H * KERNEL_W, num_stages=1):
            acc = direct_tap(acc, window, w_ptr, mid, mid_ok, tap, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, EVEN,
                             TAP_MODE)  # fmt: skip
    return acc


@triton.jit
def dot_step(acc, window, w_ptr, group, first, n_ok, only, tap, step, GROUPS: tl.constexpr,
             C_PER_GROUP: tl.constexpr, K_PER_GROUP: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
             DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr,
             DEPTH: tl.constexpr, TAP_MODE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Acc + x @ w of one tap and DEPTH input channels; `only` is the one group of the pack to read, or None."""
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    EVEN: tl.constexpr = PACK * C_PER_GROUP == DEPTH and GROUPS % PACK == 0 if PACK > 1 else C_PER_GROUP % DEPTH == 0
    rows, ok = window_tap(window, tap, KERNEL_W, DILATION_H, DILATION_W, TAP_MODE)
    k = tl.arange(0, DEPTH)
    n = tl.arange(0, TILE)
    c = step * DEPTH + k
    if PACK > 1:
        member = k // C_PER_GROUP  # the group of the pack that a channel belongs to
        k_ok = (member < PACK) & (member < GROUPS - group)
        w_ok = (member[:, None] == (n // K_PER_GROUP)[None, :]) & k_ok[:, None] & n_ok[None, :]
        column = k % C_PER_GROUP
    else:
        k_ok = c < C_PER_GROUP
        w_ok = k_ok[:, None] & n_ok[None, :]
        column = c
    x_ok = ok if EVEN else ok & k_ok[None, :]
    if only is not None:
        x_ok = x_ok & (member == only)[None, :]
    x = tl.load(rows[:, None] + (group * C_PER_GROUP + c)[None, :], mask=x_ok, other=0.0)  # [BLOCK_M, DEPTH]
    w_columns = w_ptr + (first + n).to(tl.int64) * (TAPS * C_PER_GROUP)
    w = tl.load(w_columns[None, :] + (tap * C_PER_GROUP + column)[:, None], mask=w_ok, other=0.0)  # [DEPTH, TILE]
    return multiply_add(x, w, acc, PRECISION)


@triton.jit
def dot_slice(window, w_ptr, group, first, n_ok, only, GROUPS: tl.constexpr, C_PER_GROUP: tl.constexpr,
              K_PER_GROUP: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, DILATION_H: tl.constexpr,
              DILATION_W: tl.constexpr, BLOCK_M: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr,
              DEPTH: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, TAP_MODE: tl.constexpr,
              PRECISION: tl.constexpr, NUM_STAGES: tl.constexpr):  # fmt: skip
    """Sums of a pack of groups, or of part of one group, from intermediate channel `first` on, [BLOCK_M, TILE]."""
    acc = tl.zeros((BLOCK_M, TILE), tl.float32)
    if UNROLL:
        for trip in tl.static_range(KERNEL_H * KERNEL_W * STEPS):
            acc = dot_step(acc, window, w_ptr, group, first, n_ok, only, trip // STEPS, trip % STEPS, GROUPS,
                           C_PER_GROUP, K_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, PACK, TILE, DEPTH,
                           TAP_MODE, PRECISION)  # fmt: skip
    else:
        for trip in tl.range(0, KERNEL_H * KERNEL_W * STEPS, num_stages=NUM_STAGES):
            acc = dot_step(acc, window, w_ptr, group, first, n_ok, only, trip // STEPS, trip % STEPS, GROUPS,
                           C_PER_GROUP, K_PER_GROUP, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W, PACK, TILE, DEPTH,
                           TAP_MODE, PRECISION)  # fmt: skip
    return acc


@triton.jit
def isolated_slice(window, w_ptr, group, first, n_ok, GROUPS: tl.constexpr, C_PER_GROUP: tl.constexpr,
                   K_PER_GROUP: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
                   DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BLOCK_M: tl.constexpr, PACK: tl.constexpr,
                   TILE: tl.constexpr, DEPTH: tl.constexpr, TAP_MODE: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """`dot_slice` of a pack, one group at a time: nothing of one group reaches another's sums."""
    owner = tl.arange(0, TILE) // K_PER_GROUP
    acc = tl.zeros((BLOCK_M, TILE), tl.float32)
    for member in tl.range(0, PACK, num_stages=1):
        own = dot_slice(window, w_ptr, group, first, n_ok, member, GROUPS, C_PER_GROUP, K_PER_GROUP, KERNEL_H,
                        KERNEL_W, DILATION_H, DILATION_W, BLOCK_M, PACK, TILE, DEPTH, 1, False, TAP_MODE, PRECISION,
                        1)  # fmt: skip
        acc = tl.where((owner == member)[None, :], own, acc)
    return acc
