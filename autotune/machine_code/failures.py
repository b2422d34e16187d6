"""Which exception means what kind of failure of a trial; whatever is not listed is a bug of ours and propagates."""

from __future__ import annotations

COMPILERS = {
    "CompilationError",
    "CompileTimeAssertionFailure",
    "UnsupportedLanguageConstruct",
    "PTXASError",
    "HSACOError",
}
"""Exceptions of Triton and of the assemblers it calls, by name: they move between its versions."""


def classify(error: BaseException, *, compiling: bool) -> str | None:
    """The kind of failure, one of `records.FAILURES`; None for an exception that says nothing about a configuration.

    Args:
        compiling: whether the kernel was being compiled, or run.

    MLIR's passes, CUDA's driver and OpenCL all report by a RuntimeError of some kind; when it happened tells which.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfResources" in names or "OutOfMemoryError" in names:
        return "resources"
    if names & COMPILERS:
        return "compile"
    foreign = type(error).__module__.partition(".")[0] in ("pyopencl", "torch")
    if (isinstance(error, RuntimeError) and not isinstance(error, (NotImplementedError, RecursionError))) or foreign:
        return "compile" if compiling else "launch"
    return None
