"""Parts of both depthwise gradients: the output's gradient in fp32, a tensor per multiplier, and the taps of a pixel.

Input row `ih` meets kernel row `r` in output row `(ih + pad - dilation * r) / stride` if that is whole. A tile begins
at a multiple of the stride, so that the place of that output row relative to the tile is known when compiling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.bundles import Share, plain
from grouped_conv.kernels.depthwise.tile_sums import load_vector
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import shuffled


@triton.constexpr_function
def reached_tap(place, pixel, axis):
    """The kernel row (or column) by which input row `pixel` of a tile reads output row `place`; -1 for none."""
    axis = plain(axis)
    tap, rest = divmod(pixel + axis.PAD - axis.STRIDE * place, axis.DILATION)
    return tap if 0 <= tap < axis.TAPS and rest == 0 else -1


@triton.constexpr_function
def first_place(axis):
    """No tap of a tile reads an output row before this."""
    axis = plain(axis)
    return -((axis.DILATION * (axis.TAPS - 1) - axis.PAD) // axis.STRIDE)


@triton.constexpr_function
def end_place(axis):
    """No tap of a tile reads this output row or one after it."""
    axis = plain(axis)
    return max(first_place(axis), (axis.TILE - 1 + axis.PAD) // axis.STRIDE + 1)


@triton.constexpr_function
def is_reached(place, axis):
    """Does any pixel of a tile read output row `place`?"""
    return any(reached_tap(place, pixel, axis) >= 0 for pixel in range(plain(axis).TILE))


@triton.constexpr_function
def is_first_use(place, tap, axis):
    """Is `place` the first output row that a tile multiplies by `tap`?"""
    axis = plain(axis)
    used = [pixel + axis.PAD - axis.DILATION * tap for pixel in range(axis.TILE)]
    return any(divmod(distance, axis.STRIDE) == (place, 0) for distance in used[: axis.STRIDE])


@triton.jit
def share_of(pid_c, IN_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr):
    """The channels of a program's block."""
    c = pid_c * CHANNELS.BLOCK + tl.arange(0, CHANNELS.BLOCK)
    c_ok = (c < IN_CHANNELS)[None, :]
    k = c
    k_ok = c_ok
    if CHANNELS.WIDE:
        k = pid_c * (CHANNELS.BLOCK * CHANNELS.PER_GROUP) + tl.arange(0, CHANNELS.BLOCK * CHANNELS.MULTIPLIERS)
        k_ok = (k < IN_CHANNELS * CHANNELS.PER_GROUP)[None, :]
    return Share(c, c_ok, k, k_ok)


@triton.jit
def channel_bases(ptr, rows, share, first, SHUFFLE: tl.constexpr, OUT_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Pointers at `rows`, [BLOCK_P], of all output channels of the share when WIDE, or a tensor per multiplier."""
    bases = ()
    if CHANNELS.WIDE:
        bases = (ptr + (rows[:, None] + shuffled(share.k, SHUFFLE, OUT_CHANNELS)[None, :]),)
    else:
        for m in tl.static_range(CHANNELS.MULTIPLIERS):
            channel = shuffled(share.c * CHANNELS.PER_GROUP + (first + m), SHUFFLE, OUT_CHANNELS)
            bases = bases + (ptr + (rows[:, None] + channel[None, :]),)
    return bases


@triton.jit
def split_multipliers(tile, MULTIPLIERS: tl.constexpr):
    """[BLOCK_P, BLOCK_C * MULTIPLIERS] as MULTIPLIERS (1, 2 or 4) tensors [BLOCK_P, BLOCK_C]."""
    HIGH: tl.constexpr = tile.shape[0]
    WIDE: tl.constexpr = tile.shape[1] // MULTIPLIERS
    if MULTIPLIERS == 1:
        return (tile,)
    elif MULTIPLIERS == 2:
        even, odd = tl.split(tl.reshape(tile, (HIGH, WIDE, 2)))
        return (even, odd)
    else:
        evens, odds = tl.split(tl.reshape(tile, (HIGH, WIDE, 2, 2)))  # of multiplier 2 * a + b, by b
        first, third = tl.split(evens)
        second, fourth = tl.split(odds)
        return (first, second, third, fourth)


@triton.jit
def load_gradients(dy, known, g_offset, k_offset, ok, k_ok, CHANNELS: tl.constexpr, DERIVATIVE: tl.constexpr):
    """The activation's input gradient, [BLOCK_P, BLOCK_C] in fp32 per multiplier; zeros where `ok` is false."""
    mask = ok
    if not CHANNELS.EVEN:
        mask = ok & k_ok
    loaded = ()
    for m in tl.static_range(len(dy)):
        known_ptrs = None
        if DERIVATIVE.ACTIVATION != "none":
            known_ptrs = known[m] + k_offset
        grad = load_gradient(dy[m] + g_offset, known_ptrs, mask, None, DERIVATIVE).to(tl.float32)
        loaded = loaded + (grad,)
    if CHANNELS.WIDE:
        return split_multipliers(loaded[0], CHANNELS.MULTIPLIERS)
    else:
        return loaded


@triton.jit
def with_tap(w, taps, offset, TAP: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr):
    """`w`, TAPS * MULTIPLIERS tensors, with the weights of one tap, times the scale, in their places."""
    taken = ()
    for t in tl.static_range(TAPS * CHANNELS.MULTIPLIERS):
        if t // CHANNELS.MULTIPLIERS == TAP:
            pointers = taps.base + (t % CHANNELS.MULTIPLIERS * taps.stride_m + offset)
            value = load_vector(pointers, taps.ok, not CHANNELS.EVEN)
            if taps.scale is not None:
                value = value * taps.scale[t % CHANNELS.MULTIPLIERS]
            taken = taken + (value,)
        else:
            taken = taken + (w[t],)
    return taken
