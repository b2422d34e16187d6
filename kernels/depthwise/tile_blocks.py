"""Around the sums of the depthwise kernel: a program's block, channel vectors, the interior test, the stores."""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.tile_sums import load_vector, span
from grouped_conv.kernels.device_code.epilogue import finish, pixel_offsets


@triton.jit
def decode_block(tiles_c, blocks_w, PARTS: tl.constexpr):
    """(channel tile, part of the multipliers, block column, block row) of this program; channels fastest."""
    pid = tl.program_id(0)
    outer = pid // tiles_c
    pixels = outer // PARTS
    return pid % tiles_c, outer % PARTS, pixels % blocks_w, pixels // blocks_w


@triton.jit
def channel_vectors(ptr, k, c_ok, CHANNELS: tl.constexpr, ABSENT: tl.constexpr):
    """One [BLOCK_P, BLOCK_C] vector in fp32 per multiplier; ABSENT everywhere without a tensor."""
    vectors = ()
    for m in tl.static_range(CHANNELS.MULTIPLIERS):
        if ptr is None:
            vectors = vectors + (tl.full(k.shape, ABSENT, tl.float32),)
        else:
            vectors = vectors + (load_vector(ptr + (k + m), c_ok, not CHANNELS.EVEN),)
    return vectors


@triton.jit
def is_interior(
    row0, block_w, rows, rows_each, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr, INTERIOR: tl.constexpr,
):  # fmt: skip
    """Are all windows of this block inside one image? Without INTERIOR the answer is not used."""
    if not INTERIOR:
        return row0 < 0
    else:
        DOWN: tl.constexpr = ROWS.TILE * ROWS.STRIDE
        RIGHT: tl.constexpr = COLUMNS.TILE * COLUMNS.STRIDE
        first = row0 % rows_each
        top = first * DOWN - ROWS.PAD
        left = block_w * (BLOCK_W * RIGHT) - COLUMNS.PAD
        bottom = top + ((BLOCK_H - 1) * DOWN + span(ROWS) - 1)
        right = left + ((BLOCK_W - 1) * RIGHT + span(COLUMNS) - 1)
        one_image = (first + BLOCK_H <= rows_each) & (row0 + BLOCK_H <= rows)
        return one_image & (top >= 0) & (left >= 0) & (bottom < height) & (right < width)


@triton.jit
def neighbours(parts, COUNT: tl.constexpr):
    """COUNT (1, 2 or 4) tensors [BLOCK_P, BLOCK_C] as one, [BLOCK_P, BLOCK_C * COUNT], element by element in turn."""
    if COUNT == 1:
        return parts[0]
    elif COUNT == 2:
        return tl.reshape(tl.join(parts[0], parts[1]), (parts[0].shape[0], 2 * parts[0].shape[1]))
    else:
        pairs = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        return tl.reshape(pairs, (parts[0].shape[0], 4 * parts[0].shape[1]))


@triton.jit
def finish_tile(
    acc, affine, epilogue, y, r, pixels, channel, channel_ok, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    """The epilogue and store of each pixel of the register tile; strides `y` of the output and `r` of the residual.

    `channel` are all output channels of the block when WIDE, otherwise those of the first multiplier.
    """
    y_first = pixel_offsets(pixels.image, pixels.h, pixels.w, y)
    r_first = None
    if epilogue.residual is not None:
        r_first = pixel_offsets(pixels.image, pixels.h, pixels.w, r)
    for p in tl.static_range(ROWS.TILE * COLUMNS.TILE):
        down = p // COLUMNS.TILE
        right = p % COLUMNS.TILE
        pixel_ok = pixels.ok & (pixels.h + down < pixels.height) & (pixels.w + right < pixels.width)
        y_rows = y_first + (down * y.h + right * y.w)
        r_rows = None
        if epilogue.residual is not None:
            r_rows = r_first + (down * r.h + right * r.w)
        out = ()
        for m in tl.static_range(CHANNELS.MULTIPLIERS):
            total = acc[m * ROWS.TILE * COLUMNS.TILE + p]
            out = out + (total if affine.scale is None else total * affine.scale[m] + affine.bias[m],)
        if CHANNELS.WIDE:
            out = (neighbours(out, CHANNELS.MULTIPLIERS),)
        for m in tl.static_range(len(out)):
            finish(out[m], epilogue, y_rows, r_rows, pixel_ok, channel + m, channel_ok, FINISH)
