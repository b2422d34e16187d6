"""Repairs of the Triton interpreter's arithmetic: bf16 values, TF32 products, and the cost of overflow checks.

In Triton 3.6 to 3.9 the interpreter keeps bf16 as raw 16-bit integers: products, sums and maxima work on bit patterns
and conversion truncates. TF32 is not emulated at all. Both would make a wrong kernel look right, or a right one wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

Array = npt.NDArray[Any]
_TF32_DROPPED_BITS = 13  # fp32 has 23 bits of mantissa, TF32 has 10 (NVIDIA A100 whitepaper)


def is_bf16(handle: TensorHandle) -> bool:
    """Does the handle hold bf16 values, as raw bits?"""
    return getattr(handle.dtype, "scalar", None) == tl.bfloat16


def from_bf16(bits: Array) -> Array:
    """bf16 bits as fp32, exactly."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """fp32 rounded to bf16 bits, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def to_tf32(values: Array) -> Array:
    """fp32 with the 13 bits cleared that tensor cores do not read, as the hardware does to an unconverted operand."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    cleared = (bits >> _TF32_DROPPED_BITS << _TF32_DROPPED_BITS).view(np.float32)
    return np.where(np.isfinite(values), cleared, values)


def _values(handle: TensorHandle) -> Array:
    return from_bf16(handle.data) if is_bf16(handle) else handle.data


class Repairs:
    """The repaired methods of the interpreter's builder; `install` and `restore` them."""

    def __init__(self) -> None:
        self._saved: dict[str, Callable[..., Any]] = {}
        self._options: InterpreterOptions | None = None

    def install(self) -> None:
        """Put the repaired methods in place and switch off the integer overflow checks (six array operations each)."""
        builder = triton_interpreter.interpreter_builder
        self._options = builder.options
        builder.options = InterpreterOptions(sanitize_overflow=False)
        for name in ("create_dot", "binary_op", "cast_impl"):
            original = getattr(InterpreterBuilder, name)
            self._saved[name] = original
            setattr(InterpreterBuilder, name, globals()[f"_{name}"](original))

    def restore(self) -> None:
        """Put Triton's own methods back."""
        for name, original in self._saved.items():
            setattr(InterpreterBuilder, name, original)
        self._saved.clear()
        if self._options is not None:
            triton_interpreter.interpreter_builder.options = self._options


def _create_dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if a.dtype.scalar == tl.float32 and "TF32" in str(input_precision).upper():
            return TensorHandle(np.matmul(to_tf32(a.data), to_tf32(b.data)) + d.data, d.dtype.scalar)
        if is_bf16(a) or is_bf16(b):
            return TensorHandle(np.matmul(_values(a), _values(b)) + d.data, d.dtype.scalar)
        return original(self, a, b, d, input_precision, max_num_imprecise_acc)

    return create_dot


def _binary_op(original: Callable[..., Any]) -> Callable[..., Any]:
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Callable[..., Array]) -> Any:
        if not (is_bf16(lhs) or is_bf16(rhs)):
            return original(self, lhs, rhs, op)
        output = op(_values(lhs), _values(rhs))
        if output.dtype == np.bool_:
            return TensorHandle(output, tl.int1)
        return TensorHandle(to_bf16(output), tl.bfloat16)

    return binary_op


def _cast_impl(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        target = dst_type.scalar
        if is_bf16(src) and target != tl.bfloat16:
            return TensorHandle(_values(src).astype(triton_interpreter._get_np_dtype(target)), target)
        if target == tl.bfloat16 and not is_bf16(src):
            return TensorHandle(to_bf16(src.data.astype(np.float32)), target)
        return original(self, src, dst_type)

    return cast_impl
