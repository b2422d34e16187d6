"""The gradient that reaches a convolution: the output's gradient through activation and scale, as it is loaded.

The formulas are torch's, so that NaN, infinities and the points where derivatives jump come out as torch's do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.epilogue import sigmoid


@triton.jit
def activation_gradient(grad, known, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr):
    """`grad` times the derivative of the activation, in fp32; for relu and relu6 in any dtype.

    `known` is the activation's output, or its argument for silu, gelu, hardswish and a leaky_relu of negative slope.
    """
    if ACTIVATION == "relu":
        grad = tl.where(known <= 0, tl.zeros_like(grad), grad)
    elif ACTIVATION == "relu6":
        grad = tl.where((known <= 0) | (known >= 6), tl.zeros_like(grad), grad)
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(known > 0, grad, grad * NEGATIVE_SLOPE)
    elif ACTIVATION == "sigmoid":
        grad = grad * (1.0 - known) * known
    elif ACTIVATION == "tanh":
        grad = grad * (1.0 - known * known)
    elif ACTIVATION == "silu":
        gate = sigmoid(known)
        grad = grad * gate * (1.0 + known * (1.0 - gate))
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(known * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * known * known)
        grad = grad * (below + known * density)
    elif ACTIVATION == "hardswish":
        inner = tl.where(known < 3, grad * (known / 3 + 0.5), grad)
        grad = tl.where(known <= -3, 0.0, inner)
    return grad


@triton.jit
def load_or_zero(pointers, mask):
    """The values at `pointers`, zeros where `mask` is false; None stands for no mask, an instruction less per load."""
    if mask is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_gradient(grad_ptrs, known_ptrs, mask, scale, DERIVATIVE: tl.constexpr):
    """The gradient of `scale * convolution`'s convolution at these places, zeros where `mask` (or None) is false.

    Without an activation and a scale (None) this is one load, which the compiler can make asynchronous; otherwise the
    product is taken in fp32 and rounded once. `scale` broadcasts against the tile.
    """
    ACTIVATION: tl.constexpr = DERIVATIVE.ACTIVATION
    grad = load_or_zero(grad_ptrs, mask)
    if (ACTIVATION == "relu" or ACTIVATION == "relu6") and scale is None:  # a choice, which needs no fp32
        known = load_or_zero(known_ptrs, mask)
        grad = activation_gradient(grad, known, ACTIVATION, DERIVATIVE.NEGATIVE_SLOPE)
    elif ACTIVATION != "none" or scale is not None:
        value = grad.to(tl.float32)
        if ACTIVATION != "none":
            known = load_or_zero(known_ptrs, mask).to(tl.float32)
            value = activation_gradient(value, known, ACTIVATION, DERIVATIVE.NEGATIVE_SLOPE)
        if scale is not None:
            value = value * scale
        grad = value.to(grad_ptrs.dtype.element_ty)
    return grad
