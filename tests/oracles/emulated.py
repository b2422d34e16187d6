"""Compiled PTX, executed instruction by instruction."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from triton.backends.compiler import GPUTarget

from grouped_conv.kernels.launching.launch import Launch, compile_launch


def emulator(arch: int, **options: Any) -> Callable[[Launch, Mapping[str, Tensor]], Any]:
    """A runner of launches that compiles for `arch` and executes the PTX; out-of-bounds accesses raise inside."""
    import ptxemu

    def run(launch: Launch, tensors: Mapping[str, Tensor]) -> Any:
        compiled = compile_launch(launch, GPUTarget("cuda", arch, 32))
        types, values = launch.signature(), launch.arguments(tensors)
        arguments = [values[name] for name in launch.kernel.arg_names if types[name] != "constexpr"]
        return ptxemu.Machine(compiled, **options).launch(launch.grid, arguments)

    return run
