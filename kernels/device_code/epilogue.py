"""What follows the accumulator: `y = activation(scale * acc + bias + residual)` and the stores, for every kernel.

The activations follow torch's formulas, so that NaN and infinities come out as torch's do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.index import shuffled


@triton.jit
def relu(x):
    """max(x, 0), NaN kept."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu6(x):
    """min(max(x, 0), 6), NaN kept."""
    return tl.minimum(relu(x), 6.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """(1 - e) / (1 + e) with e = exp(-2|x|); a Taylor polynomial below 0.25, where that difference cancels."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    x2 = x * x
    near = x * (1.0 + x2 * (-1.0 / 3 + x2 * (2.0 / 15 + x2 * (-17.0 / 315 + x2 * (62.0 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr):
    """The activation called `ACTIVATION`, in fp32."""
    if ACTIVATION == "relu":
        x = relu(x)
    elif ACTIVATION == "relu6":
        x = relu6(x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, x * NEGATIVE_SLOPE)
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "hardswish":
        x = x * relu6(x + 3.0) / 6.0
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    return x


@triton.jit
def affine(acc, scale_ptr, bias_ptr, channel, channel_ok):
    """Scale * acc + bias, per output channel."""
    if scale_ptr is not None:
        acc = acc * tl.load(scale_ptr + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc = acc + tl.load(bias_ptr + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def pixel_offsets(image, h, w, strides):
    """Offset of each pixel's first channel, [BLOCK_M] in int64."""
    return image.to(tl.int64) * strides.n + h.to(tl.int64) * strides.h + w.to(tl.int64) * strides.w


@triton.jit
def row_offsets(m, image, h, w, strides, DENSE: tl.constexpr):
    """The same for pixels numbered `m`; where they follow each other in memory (DENSE), by one product."""
    if DENSE:
        rows = m.to(tl.int64) * strides.w
    else:
        rows = pixel_offsets(image, h, w, strides)
    return rows


@triton.jit
def store_tile(ptr, values, rows, channel, stride_c, row_ok, channel_ok, VECTOR: tl.constexpr):
    """Store [BLOCK_M, BLOCK_N] at `rows` + `channel * stride_c`, VECTOR channels at a time when they are innermost.

    The third axis keeps AMD's compiler from storing straight from the MFMA layout, 8 bytes at a time.
    """
    out = values.to(ptr.dtype.element_ty)
    if VECTOR == 1:
        tl.store(ptr + (rows[:, None] + (channel * stride_c)[None, :]), out, mask=row_ok[:, None] & channel_ok[None, :])
    else:
        BLOCK_M: tl.constexpr = values.shape[0]
        VECTORS: tl.constexpr = values.shape[1] // VECTOR
        offsets = rows[:, None, None] + tl.reshape(channel, (VECTORS, VECTOR))[None, :, :]
        mask = row_ok[:, None, None] & tl.reshape(channel_ok, (VECTORS, VECTOR))[None, :, :]
        tl.store(ptr + offsets, tl.reshape(out, (BLOCK_M, VECTORS, VECTOR)), mask=mask)


@triton.jit
def add_residual(acc, ptr, rows, channel, stride_c, row_ok, channel_ok):
    """Acc + the residual at `rows` + `channel * stride_c`, [BLOCK_M, BLOCK_N]."""
    residual = ptr + (rows[:, None] + (channel * stride_c)[None, :])
    return acc + tl.load(residual, mask=row_ok[:, None] & channel_ok[None, :], other=0.0).to(tl.float32)


@triton.jit
def finish(acc, epilogue, y_rows, r_rows, row_ok, channel, channel_ok, FINISH: tl.constexpr, shuffled_channel=None):
    """Apply the epilogue to `acc`, [BLOCK_M, BLOCK_N], and store it; channel strides of 1 are constants.

    `y_rows` and `r_rows`, [BLOCK_M], are the offsets of the pixels in the output and in the residual. Shuffled
    output channels are stored one by one, at `shuffled_channel` if the caller has a simpler form of it.
    """
    acc = affine(acc, epilogue.scale, epilogue.bias, channel, channel_ok)
    if epilogue.residual is not None:
        acc = add_residual(acc, epilogue.residual, r_rows, channel, epilogue.stride_rc, row_ok, channel_ok)
    if epilogue.pre is not None:
        store_tile(epilogue.pre, acc, y_rows, channel, epilogue.stride_yc, row_ok, channel_ok, FINISH.VECTOR)
    ACTIVATION: tl.constexpr = FINISH.ACTIVATION
    acc = activate(acc, ACTIVATION, FINISH.NEGATIVE_SLOPE)
    if FINISH.SHUFFLE == 1:
        store_tile(epilogue.y, acc, y_rows, channel, epilogue.stride_yc, row_ok, channel_ok, FINISH.VECTOR)
    else:
        if shuffled_channel is None:
            shuffled_channel = shuffled(channel, FINISH.SHUFFLE, FINISH.OUT_CHANNELS)
        store_tile(epilogue.y, acc, y_rows, shuffled_channel, epilogue.stride_yc, row_ok, channel_ok, 1)
