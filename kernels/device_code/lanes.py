"""Tiles as tuples of their columns and back, for kernels in which each thread holds neighbouring channels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_lanes(tile, WIDTH: tl.constexpr):
    """The columns of a [BLOCK, WIDTH] tile, a tuple of WIDTH tensors [BLOCK]; WIDTH is a power of two."""
    BLOCK: tl.constexpr = tile.shape[0]
    if WIDTH == 1:
        return (tl.reshape(tile, (BLOCK,)),)
    else:
        even, odd = tl.split(tl.reshape(tile, (BLOCK, WIDTH // 2, 2)))
        evens = split_lanes(even, WIDTH // 2)
        odds = split_lanes(odd, WIDTH // 2)
        lanes = ()
        for i in tl.static_range(WIDTH // 2):
            lanes = lanes + (evens[i], odds[i])
        return lanes


@triton.jit
def join_lanes(lanes, WIDTH: tl.constexpr):
    """The inverse of `split_lanes`."""
    BLOCK: tl.constexpr = lanes[0].shape[0]
    if WIDTH == 1:
        return lanes[0][:, None]
    else:
        evens = ()
        odds = ()
        for i in tl.static_range(WIDTH // 2):
            evens = evens + (lanes[2 * i],)
            odds = odds + (lanes[2 * i + 1],)
        return tl.reshape(tl.join(join_lanes(evens, WIDTH // 2), join_lanes(odds, WIDTH // 2)), (BLOCK, WIDTH))


@triton.jit
def take_lanes(lanes, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """`lanes[FIRST : FIRST + COUNT]`; Triton's own slices take no constexpr bounds."""
    taken = ()
    for i in tl.static_range(COUNT):
        taken = taken + (lanes[FIRST + i],)
    return taken


@triton.jit
def zero_lanes(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """COUNT tensors [BLOCK] of fp32 zeros."""
    lanes = ()
    for _ in tl.static_range(COUNT):
        lanes = lanes + (tl.zeros((BLOCK,), tl.float32),)
    return lanes
