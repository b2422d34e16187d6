"""One kernel launch as a value, and the one way to compile it.

A `Launch` is complete but for the tensors: kernel, grid, argument types, integers, constants, alignment. Offline
tuning, the runtime's plans and the interpreter all start from it, so what is inspected is what runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from grouped_conv.kernels.launching.compiling import compiling
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.refusals import INT32_MAX as INT32_MAX

POINTER_TYPE = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "int32": "*i32", "int64": "*i64"}


@dataclass(frozen=True)
class Buffer:
    """A tensor argument: the kernel's parameter, the name of the buffer it points to, its dtype and byte alignment."""

    parameter: str
    name: str
    dtype: str
    alignment: int = 16


@dataclass(frozen=True)
class Integer:
    """An integer argument, its type (`i32` or `i64`), and a power of two that is promised to divide it."""

    parameter: str
    value: int
    type: str
    divisor: int = 1

    @classmethod
    def of(cls, parameter: str, value: int, *, wide: bool = False, stride: bool = False) -> Integer:
        """The narrowest argument for `value`; strides carry their divisibility so that loads can be vectorised."""
        kind = "i64" if wide or abs(value) > INT32_MAX else "i32"
        return cls(parameter, value, kind, power_of_two_divisor(value) if stride else 1)


def power_of_two_divisor(value: int, most: int = 16) -> int:
    """The largest power of two up to `most` that divides `value` (`most` for zero)."""
    return min(most, value & -value) if value else most


def as_constant(value: Any) -> Any:
    """`value` for Triton: the fields of a bundle become constants of their own, which 3.6 does not do by itself."""
    if isinstance(value, tuple):
        return type(value)(*(triton.language.constexpr(as_constant(field)) for field in value))
    return value


class Source(ASTSource):
    """A kernel's source whose hash knows the fields of the bundles that its device code makes.

    Triton's own hash has a bundle's name alone. After an upgrade that changed the order of its fields, the cache on
    disk would hand out code of the former order.
    """

    def hash(self) -> str:
        """The key of Triton's cache."""
        own = super().hash()  # finds the globals that the kernel and its helpers use
        used = [value for value, _ in self.fn.used_global_vals.values() if hasattr(value, "_fields")]
        fields = sorted({f"{bundle.__name__}{bundle._fields}{bundle._field_defaults}" for bundle in used})
        return hashlib.sha256("-".join([own, *fields]).encode()).hexdigest()


@dataclass(frozen=True)
class Launch:
    """One kernel launch, complete but for the tensors.

    Attributes:
        kernel: the `@triton.jit` function.
        config: block sizes and pipeline of this launch.
        grid: programs along each axis.
        buffers, integers: run-time arguments.
        constants: compile-time arguments; a tensor argument that is absent is the constant `None`.
        trips: iterations of the source's inner loop in one program.
    """

    kernel: triton.JITFunction
    config: KernelConfig
    grid: tuple[int, int, int]
    buffers: tuple[Buffer, ...]
    integers: tuple[Integer, ...]
    constants: Mapping[str, Any] = field(hash=False)
    trips: int = 1

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    def signature(self) -> dict[str, str]:
        """Triton's type of each parameter, in the kernel's order."""
        types = {buffer.parameter: POINTER_TYPE[buffer.dtype] for buffer in self.buffers}
        types |= {integer.parameter: integer.type for integer in self.integers}
        return {parameter: types.get(parameter, "constexpr") for parameter in self.kernel.arg_names}

    def source(self) -> ASTSource:
        """What `triton.compile` takes: the same for every launch that may share the compiled code."""
        index = {parameter: position for position, parameter in enumerate(self.kernel.arg_names)}
        promised = [(buffer.parameter, buffer.alignment) for buffer in self.buffers]
        promised += [(integer.parameter, integer.divisor) for integer in self.integers]
        return Source(
            fn=self.kernel,
            signature=self.signature(),
            constexprs={(index[parameter],): as_constant(value) for parameter, value in self.constants.items()},
            attrs={
                (index[parameter],): [["tt.divisibility", divisor]] for parameter, divisor in promised if divisor > 1
            },
        )

    def arguments(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the kernel, given the buffers by name."""
        values: dict[str, Any] = {buffer.parameter: tensors[buffer.name] for buffer in self.buffers}
        values |= {integer.parameter: integer.value for integer in self.integers}
        return values | dict(self.constants)

    def positional(self, tensors: Mapping[str, Any]) -> list[Any]:
        """The same arguments in the kernel's order, as a compiled kernel's launcher takes them."""
        values = self.arguments(tensors)
        return [values[parameter] for parameter in self.kernel.arg_names]


def compile_options(launch: Launch, target: GPUTarget) -> dict[str, Any]:
    """Options of `triton.compile` for this launch on this target."""
    options: dict[str, Any] = {
        "num_warps": launch.config.num_warps,
        "num_stages": launch.config.num_stages,
        "enable_fp_fusion": True,  # stated because Triton's default changes with its version
    }
    if target.backend == "cuda" and int(target.arch) == 100 and launch.config.num_warps <= 8:
        options["maxnreg"] = 255  # ptxas stops at 96 or 128 registers there and spills 8 or 16 bytes outside the loop
    registers = getattr(launch.config, "max_registers", 0)
    if target.backend == "cuda" and registers:
        options["maxnreg"] = registers
    return options


def compile_launch(launch: Launch, target: GPUTarget) -> CompiledKernel:
    """Compile one launch for `target`; needs no GPU. Triton keeps the result in its cache on disk."""
    with compiling():
        return triton.compile(launch.source(), target=target, options=compile_options(launch, target))
