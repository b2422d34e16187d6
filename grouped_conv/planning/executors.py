"""Where kernels run: on the GPU, in Triton's interpreter, or through whatever driver Triton has active.

An executor chooses the configuration for its place and turns each `Launch` into a callable. CPU tensors have an
executor only inside `interpret()` or `through_driver()`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.launch import Launch, compile_launch, compile_options
from grouped_conv.kernels.lrn_pool import forward_rules as lrn_pool_rules
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

BUFFERS = ("input", "weight", "bias", "scale", "residual", "output", "preactivation")
"""Names of the buffers of a call, in the order plans hold them; temporaries follow."""

Step = Callable[[Any, Sequence[Any]], None]
"""Runs one launch, given the stream and the buffers in the plan's order."""


class Executor(Protocol):
    """A place that runs launches. Equal executors may share plans."""

    @property
    def name(self) -> str:
        """What it is called in a record's reason."""

    @property
    def spec(self) -> DeviceSpec:
        """The device whose predictions configurations are chosen by."""

    def choose(self, problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
        """A configuration that runs `problem` here, without looking at any record."""

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        """Compile or load what `launch` needs; `names` gives the order of the buffers that the step will get."""

    def stream(self, device: int) -> Any:
        """The stream of `device` that is current now."""


@dataclass(frozen=True, slots=True)
class InterpreterExecutor:
    """Runs launches in Triton's interpreter, with the configurations of `device`."""

    device: str

    @property
    def name(self) -> str:
        """What it is called in a record's reason."""
        return f"Triton's interpreter, as for {self.device}"

    @property
    def spec(self) -> DeviceSpec:
        """The device that is played."""
        return DeviceSpec.get(self.device)

    def choose(self, problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
        """The heuristic's answer for the device that is played."""
        return _heuristic(problem, self.spec)

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        """Nothing to prepare: the interpreter reads the launch."""

        def step(stream: Any, buffers: Sequence[Any]) -> None:
            interpret_launch(launch, dict(zip(names, buffers, strict=True)))

        return step

    def stream(self, device: int) -> Any:
        """None: the interpreter runs at once."""
        return None


class DriverExecutor:
    """Launches compiled kernels through one of Triton's drivers: a GPU's, or one that takes CPU tensors."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DriverExecutor) and other.driver is self.driver

    def __hash__(self) -> int:
        return id(self.driver)

    @property
    def name(self) -> str:
        """What it is called in a record's reason."""
        target = self.driver.get_current_target()
        return f"Triton's driver for {target.backend}:{target.arch}"

    @property
    def is_native(self) -> bool:
        """True for the lane that runs compiled kernels natively on the CPU."""
        return bool(self.driver.get_current_target().backend == "cpu_native")

    @property
    def spec(self) -> DeviceSpec:
        """A device of the target's architecture; an H100 on the native lane."""
        target = self.driver.get_current_target()
        if self.is_native:
            return DeviceSpec.get("h100")
        return DeviceSpec.get(f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch))

    def choose(self, problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
        """The heuristic's answer for the target; on the native lane a tile that its lowering gets right."""
        return native_config(problem) if self.is_native else _heuristic(problem, self.spec)

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        """Compile the launch, or find it compiled, and load it on the current device."""
        kernel = _compiled(launch, self.driver.get_current_target(), (self, device))
        return CompiledStep(kernel, launch, names)

    def stream(self, device: int) -> Any:
        """The current stream's handle."""
        return self.driver.get_current_stream(device)


class CompiledStep:
    """A compiled kernel with its grid and all arguments but the tensors: no binder, no key string, no grid function."""

    __slots__ = ("arguments", "function", "grid", "kernel", "metadata", "run", "slots")

    def __init__(self, kernel: CompiledKernel, launch: Launch, names: Sequence[str]) -> None:
        tensors = dict.fromkeys(names)
        position = {parameter: index for index, parameter in enumerate(launch.kernel.arg_names)}
        self.kernel = kernel
        self.run = kernel.run  # loads the module
        self.function = kernel.function
        self.metadata = kernel.packed_metadata
        self.grid = launch.grid
        self.arguments = launch.positional(tensors)
        self.slots = tuple((position[buffer.parameter], names.index(buffer.name)) for buffer in launch.buffers)

    def __call__(self, stream: Any, buffers: Sequence[Any]) -> None:
        arguments = self.arguments.copy()
        for position, index in self.slots:
            arguments[position] = buffers[index]
        x, y, z = self.grid
        if _has_launch_hooks():
            self.kernel[self.grid](*arguments, stream=stream)
        else:
            self.run(x, y, z, stream, self.function, self.metadata, None, None, None, *arguments)


def _has_launch_hooks() -> bool:
    """Does a profiler want to see launches? Triton keeps a chain of hooks there, a user may put a function or None."""
    hook = triton.knobs.runtime.launch_enter_hook
    return bool(getattr(hook, "calls", hook))


# Never emptied: a CUDA graph may hold a kernel whose plan is gone.
_kernels: dict[tuple[Any, ...], CompiledKernel] = {}


def _compiled(launch: Launch, target: GPUTarget, place: tuple[Any, ...]) -> CompiledKernel:
    key = (place, launch.source().hash(), repr(compile_options(launch, target)))
    kernel = _kernels.get(key)
    if kernel is None:
        kernel = _kernels.setdefault(key, compile_launch(launch, target))
    return kernel


def abandon_kernels() -> dict[tuple[Any, ...], CompiledKernel]:
    """Start with no compiled kernels, as a forked child must; returns those there were."""
    global _kernels, _gpu, _lock
    before, _kernels, _gpu, _lock = _kernels, {}, None, threading.Lock()
    return before


def native_config(problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
    """For the native lane: the family that the heuristic takes for an H100, on one warp and a small tile.

    Beyond one warp and 64 columns the lane's lowering is wrong or slow.
    """
    if isinstance(problem, LrnPoolProblem):
        return lrn_pool_rules.one_warp(problem)
    chosen = _heuristic(problem, DeviceSpec.get("h100"))
    return family_of(chosen).one_warp(problem)


def _heuristic(problem: ConvProblem | LrnPoolProblem, device: DeviceSpec) -> KernelConfig:
    from grouped_conv.autotune.model import heuristic
    from grouped_conv.autotune.model.lrn_pool import forward as lrn_pool_model

    if isinstance(problem, LrnPoolProblem):
        return lrn_pool_model.choose(problem, device)
    return heuristic.choose(problem, device)


for_cpu_tensors: ContextVar[Executor | None] = ContextVar("grouped_conv_executor", default=None)
_gpu: DriverExecutor | None = None
_lock = threading.Lock()


def executor_of_cpu_tensors() -> Executor | None:
    """What `interpret()` or `through_driver()` put in force here, or None."""
    return for_cpu_tensors.get()


def gpu_executor() -> DriverExecutor:
    """The executor of CUDA tensors, one per process."""
    global _gpu
    if _gpu is None:
        with _lock:
            _gpu = _gpu or DriverExecutor(triton.runtime.driver.active)
    return _gpu
