"""What follows the accumulator: `y = activation(scale * acc + bias + residual)` and the stores, for every kernel.

The activations follow torch's formulas, so that NaN and infinities come out as torch's do.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
    """scale * acc + bias, per output channel."""
    if scale_ptr is not None:
        acc = acc * tl.load(scale_ptr + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc = acc + tl.load(bias_ptr + channel, mask=channel_ok, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def finish(
    acc,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    pre_ptr,
    y_ptr,
    image,
    out_h,
    out_w,
    channel,
    row_ok,
    channel_ok,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    stride_rn,
    stride_rc,
    stride_rh,
    stride_rw,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
):
    """Apply the epilogue to `acc`, [BLOCK_M, BLOCK_N], and store it; channel strides of 1 are constants."""
    mask = row_ok[:, None] & channel_ok[None, :]
    acc = affine(acc, scale_ptr, bias_ptr, channel, channel_ok)
    if residual_ptr is not None:
        r_rows = image.to(tl.int64) * stride_rn + out_h.to(tl.int64) * stride_rh + out_w.to(tl.int64) * stride_rw
        acc += tl.load(residual_ptr + (r_rows[:, None] + (channel * stride_rc)[None, :]), mask=mask, other=0.0).to(tl.float32)
    y_rows = image.to(tl.int64) * stride_yn + out_h.to(tl.int64) * stride_yh + out_w.to(tl.int64) * stride_yw
    offsets = y_rows[:, None] + (channel * stride_yc)[None, :]
    if pre_ptr is not None:
        tl.store(pre_ptr + offsets, acc.to(pre_ptr.dtype.element_ty), mask=mask)
    acc = activate(acc, ACTIVATION, NEGATIVE_SLOPE)
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)
