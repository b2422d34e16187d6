"""Around the sums of the depthwise kernel: a program's block, channel vectors, the interior test, the stores."""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.depthwise.tile_sums import load_vector
from grouped_conv.kernels.device_code.bundles import Epilogue, Finish, Strides
from grouped_conv.kernels.device_code.epilogue import finish, pixel_offsets


@triton.jit
def decode_block(tiles_c, blocks_w, PARTS: tl.constexpr):
    """(channel tile, part of the multipliers, block column, block row) of this program; channels fastest."""
    pid = tl.program_id(0)
    outer = pid // tiles_c
    pixels = outer // PARTS
    return pid % tiles_c, outer % PARTS, pixels % blocks_w, pixels // blocks_w


@triton.jit
def channel_vectors(ptr, k, c_ok, EVEN_C: tl.constexpr, MULTIPLIERS: tl.constexpr, ABSENT: tl.constexpr):
    """One [BLOCK_P, BLOCK_C] vector in fp32 per multiplier; ABSENT everywhere without a tensor."""
    vectors = ()
    for m in tl.static_range(MULTIPLIERS):
        if ptr is None:
            vectors = vectors + (tl.full(k.shape, ABSENT, tl.float32),)
        else:
            vectors = vectors + (load_vector(ptr + (k + m), c_ok, not EVEN_C),)
    return vectors


@triton.jit
def is_interior(
    row0,
    block_w,
    rows,
    rows_each,
    IN_H,
    IN_W,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    INTERIOR: tl.constexpr,
):
    """Do all windows of this block lie inside one image? Never asked without INTERIOR."""
    if not INTERIOR:
        return row0 < 0
    else:
        HIGH: tl.constexpr = (BLOCK_H * TILE_H - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H
        WIDE: tl.constexpr = (BLOCK_W * TILE_W - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W
        first = row0 % rows_each
        top = first * (TILE_H * STRIDE_H) - PAD_H
        left = block_w * (BLOCK_W * TILE_W * STRIDE_W) - PAD_W
        one_image = (first + BLOCK_H <= rows_each) & (row0 + BLOCK_H <= rows)
        return one_image & (top >= 0) & (left >= 0) & (top + HIGH < IN_H) & (left + WIDE < IN_W)


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
    acc,
    scale,
    bias,
    residual_ptr,
    pre_ptr,
    y_ptr,
    FROM_BIAS: tl.constexpr,
    image,
    oh0,
    ow0,
    c,
    k,
    first,
    channels,
    row_ok,
    OUT_H,
    OUT_W,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    stride_rn,
    stride_rc,
    stride_rh,
    stride_rw,
    K_PER_GROUP: tl.constexpr,
    MULTIPLIERS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    VECTOR: tl.constexpr,
    SHUFFLE: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
):
    """The epilogue and store of each pixel of the register tile: `k` are all its channels, `c` those of the input."""
    y_first = pixel_offsets(image, oh0, ow0, Strides(stride_yn, 1, stride_yh, stride_yw))
    r_first = None
    if residual_ptr is not None:
        r_first = pixel_offsets(image, oh0, ow0, Strides(stride_rn, 1, stride_rh, stride_rw))
    for p in tl.static_range(TILE_H * TILE_W):
        pixel_ok = row_ok & (oh0 + p // TILE_W < OUT_H) & (ow0 + p % TILE_W < OUT_W)
        y_rows = y_first + ((p // TILE_W) * stride_yh + (p % TILE_W) * stride_yw)
        r_rows = None
        if residual_ptr is not None:
            r_rows = r_first + ((p // TILE_W) * stride_rh + (p % TILE_W) * stride_rw)
        out = ()
        for m in tl.static_range(MULTIPLIERS):
            total = acc[m * TILE_H * TILE_W + p]
            out = out + (total if FROM_BIAS else total * scale[m] + bias[m],)
        if MULTIPLIERS == K_PER_GROUP and (MULTIPLIERS == 1 or MULTIPLIERS == 2 or MULTIPLIERS == 4):
            finish(
                neighbours(out, MULTIPLIERS), Epilogue(None, None, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc),
                y_rows, r_rows, pixel_ok, k, k < channels * K_PER_GROUP,
                Finish(ACTIVATION, NEGATIVE_SLOPE, VECTOR, SHUFFLE, OUT_CHANNELS),
            )  # fmt: skip
        else:
            for m in tl.static_range(MULTIPLIERS):
                finish(
                    out[m], Epilogue(None, None, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc), y_rows, r_rows,
                    pixel_ok, c * K_PER_GROUP + (first + m), c < channels,
                    Finish(ACTIVATION, NEGATIVE_SLOPE, 1, SHUFFLE, OUT_CHANNELS),
                )  # fmt: skip
