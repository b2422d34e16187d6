"""Runs the real kernels on CPU tensors in Triton's interpreter, without its environment variable.

Triton's internals are patched inside `interpreting()` only and restored after it. Arguments get exactly the types of
the compiled launch. bf16 and TF32, which the interpreter gets wrong or ignores, are repaired by `numerics`.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np
import triton
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from triton.runtime.interpreter import FunctionRewriter, TensorHandle
from triton.runtime.jit import JITFunction

from grouped_conv.kernels.interpreting.numerics import Repairs
from grouped_conv.kernels.launching.compiling import patching
from grouped_conv.kernels.launching.launch import POINTER_TYPE, Launch

Watcher = Callable[[Launch, Mapping[str, Any]], AbstractContextManager[Callable[[], None]]]

watcher: Watcher | None = None
"""Called around each interpreted launch; what it yields is called after each program. For `counting`."""

_rewritten: dict[Any, Callable[..., Any]] = {}
_INTEGER_TYPES = {"i32": (np.int32, tl.int32), "i64": (np.int64, tl.int64)}


class _LanguageModules:
    """What Triton's patching function looks at: an object with globals that hold the language modules."""

    __globals__: ClassVar = {"tl": tl, "core": tl.core}


class _NothingToRestore:
    def restore(self) -> None:
        """The language is already patched, once, by the enclosing block."""


@contextmanager
def interpreting() -> Iterator[None]:
    """Triton's language interprets instead of compiling, in this block and on this thread; other threads wait.

    Blocks nest. Compiling inside one raises an error (see `compiling`).
    """
    with patching() as outermost, _patched() if outermost else nullcontext():
        yield


@contextmanager
def _patched() -> Iterator[None]:
    patch_language = triton_interpreter._patch_lang
    scope = patch_language(_LanguageModules)
    repairs = Repairs()
    call = JITFunction.__call__
    index = tl.core.tensor.__dict__.get("__index__")
    try:
        triton_interpreter._patch_lang = lambda fn: _NothingToRestore()
        JITFunction.__call__ = _call_device_function
        tl.core.tensor.__index__ = lambda self: int(self.handle.data.squeeze())  # Triton 3.6 leaves this out
        repairs.install()
        yield
    finally:
        repairs.restore()
        if index is None:
            del tl.core.tensor.__index__
        else:
            tl.core.tensor.__index__ = index
        JITFunction.__call__ = call
        triton_interpreter._patch_lang = patch_language
        scope.restore()


def _call_device_function(function: JITFunction, *args: Any, **kwargs: Any) -> Any:
    return _rewrite(function)(*args, **kwargs)


def _rewrite(function: Any) -> Callable[..., Any]:
    """A kernel's Python function, rewritten by Triton once; the globals of its module do not change."""
    original = function.fn
    if original not in _rewritten:
        private = types.FunctionType(
            original.__code__, dict(original.__globals__), original.__name__, original.__defaults__
        )
        private.__module__ = original.__module__
        private.__qualname__ = original.__qualname__
        _rewritten[original] = FunctionRewriter(private).rewrite_ast()
    return _rewritten[original]


def interpret_launch(
    launch: Launch, tensors: Mapping[str, Any], programs: Iterator[tuple[int, int, int]] | None = None
) -> None:
    """Run one launch on CPU tensors, changed in place.

    Args:
        tensors: the launch's buffers by name, as objects with `data_ptr()`.
        programs: program ids to run, in this order; all of the grid by default.

    Raises:
        RuntimeError: naming the kernel and the program that failed.
    """
    with interpreting():
        function = _rewrite(launch.kernel)
        arguments = _typed_arguments(launch, tensors)
        builder = triton_interpreter.interpreter_builder
        builder.set_grid_dim(*launch.grid)
        with watcher(launch, tensors) if watcher else nullcontext(lambda: None) as end_program:
            for program in programs or itertools.product(*(range(size) for size in launch.grid)):
                builder.set_grid_idx(*program)
                try:
                    with np.errstate(all="ignore"):  # inf - inf is the kernel's business, not a warning
                        function(**arguments)
                except Exception as error:
                    raise RuntimeError(
                        f"{launch.name} failed in program {program} of {launch.grid}: {error}"
                    ) from error
                end_program()


def _typed_arguments(launch: Launch, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel's arguments as interpreter tensors of the types that the compiled kernel would see."""
    arguments: dict[str, Any] = dict(launch.constants)
    for integer in launch.integers:
        numpy_type, triton_type = _INTEGER_TYPES[integer.type]
        arguments[integer.parameter] = tl.tensor(
            TensorHandle(np.array([integer.value], numpy_type), triton_type), triton_type
        )
    for buffer in launch.buffers:
        pointer = triton.language.str_to_ty(POINTER_TYPE[buffer.dtype], None)
        address = np.array([tensors[buffer.name].data_ptr()], np.uint64)
        arguments[buffer.parameter] = tl.tensor(TensorHandle(address, pointer), pointer)
    return arguments
