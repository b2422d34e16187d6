"""What the depthwise gradients share: the output's gradient in fp32, a tensor per multiplier, and taps by input pixel.

An input row `ih` reads output row `(ih + pad - dilation * r) / stride` where that is whole. With a tile's first row a
multiple of the stride, the place of that row relative to the tile, and so the tap, is known when compiling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.tile_sums import load_vector
from grouped_conv.kernels.device_code.bundles import Derivative
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.index import shuffled


@triton.constexpr_function
def reached_tap(place, pixel, taps, stride, pad, dilation):
    """The kernel row by which input row `pixel` of a tile reads output row `place`; -1 for none."""
    distance = pixel + pad - stride * place
    return distance // dilation if 0 <= distance < dilation * taps and distance % dilation == 0 else -1


@triton.constexpr_function
def first_place(taps, stride, pad, dilation):
    """No tap of a tile reads an output row before this."""
    return -((dilation * (taps - 1) - pad) // stride)


@triton.constexpr_function
def place_count(pixels, taps, stride, pad, dilation):
    """From the first to the last output row that `pixels` rows read."""
    return max(0, (pixels - 1 + pad) // stride + (dilation * (taps - 1) - pad) // stride + 1)


@triton.constexpr_function
def is_reached(place, pixels, taps, stride, pad, dilation):
    """Does any of a tile's `pixels` read output row `place`?"""
    return any(reached_tap(place, pixel, taps, stride, pad, dilation) >= 0 for pixel in range(pixels))


@triton.constexpr_function
def is_first_use(place, tap, pixels, stride, pad, dilation):
    """Is `place` the first output row that a tile multiplies by `tap`?"""
    used = [pixel + pad - dilation * tap for pixel in range(pixels)]
    return any(distance % stride == 0 and distance // stride == place for distance in used[:stride])


@triton.jit
def channel_bases(
    ptr,
    rows,
    c,
    k,
    first,
    SHUFFLE: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Pointers at `rows`, [BLOCK_P], of all output channels `k` of the block when WIDE, or a tensor per multiplier."""
    bases = ()
    if WIDE:
        bases = (ptr + (rows[:, None] + shuffled(k, SHUFFLE, OUT_CHANNELS)[None, :]),)
    else:
        for m in tl.static_range(MULTIPLIERS):
            channel = shuffled(c * K_PER_GROUP + (first + m), SHUFFLE, OUT_CHANNELS)
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
def load_gradients(
    dy,
    known,
    g_offset,
    k_offset,
    ok,
    k_ok,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    EVEN_C: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradient behind the activation, [BLOCK_P, BLOCK_C] in fp32 per multiplier; zeros where `ok` is false."""
    mask = ok
    if not EVEN_C:
        mask = ok & k_ok
    loaded = ()
    for m in tl.static_range(1 if WIDE else MULTIPLIERS):
        known_ptrs = None
        if ACTIVATION != "none":
            known_ptrs = known[m] + k_offset
        grad = load_gradient(dy[m] + g_offset, known_ptrs, mask, None, Derivative(ACTIVATION, NEGATIVE_SLOPE, 1, 1, 1))
        loaded = loaded + (grad.to(tl.float32),)
    if WIDE:
        return split_multipliers(loaded[0], MULTIPLIERS)
    else:
        return loaded


@triton.jit
def with_tap(
    w,
    w_base,
    scale,
    c_ok,
    stride_wm,
    offset,
    TAP: tl.constexpr,
    TAPS: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    EVEN_C: tl.constexpr,
    SCALED: tl.constexpr,
):
    """`w`, TAPS * MULTIPLIERS tensors, with the weights of one tap, times the scale, in their places."""
    taken = ()
    for t in tl.static_range(TAPS * MULTIPLIERS):
        if t // MULTIPLIERS == TAP:
            value = load_vector(w_base + (t % MULTIPLIERS * stride_wm + offset), c_ok, not EVEN_C)
            if SCALED:
                value = value * scale[t % MULTIPLIERS]
            taken = taken + (value,)
        else:
            taken = taken + (w[t],)
    return taken
