"""Where kernels run: on a GPU, in Triton's interpreter, or through the driver that is active in Triton.

An executor chooses the configuration for its place and turns each `Launch` into a callable. CPU tensors have an
executor only inside `interpret()` or `through_driver()`. `for_cpu_tensors` is also where tests put an executor that
plays a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.launch import Launch, compile_launch, compile_options
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.live_device import live_device

Step = Callable[[Any, Sequence[Any]], None]
"""Runs one launch, given the stream and the buffers in the plan's order."""


class Executor:
    """A place that runs launches. Equal executors may share plans."""

    follows_records: ClassVar[bool] = False
    """Do the policy and the tuner's records decide here, as on a GPU? Otherwise kernels always run."""

    @property
    def name(self) -> str:
        """What it is called in a record's reason."""
        raise NotImplementedError

    def spec(self, device: int) -> DeviceSpec | None:
        """The device whose predictions configurations are chosen by; None for an unknown architecture."""
        raise NotImplementedError

    def why_nothing_compiles(self) -> str:
        """Why no kernel can be compiled at this moment; empty when one can."""
        return ""

    def choose(self, problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
        """A configuration that runs `problem` here, without looking at any record."""
        raise NotImplementedError

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        """Compile or load what `launch` needs; `names` gives the order of the buffers that the step will get."""
        raise NotImplementedError

    def stream(self, device: int) -> Any:
        """The stream of `device` that is current now; None for what has no streams."""
        return None


@dataclass(frozen=True, slots=True)
class InterpreterExecutor(Executor):
    """Runs launches in Triton's interpreter, with the configurations of `device`."""

    device: str

    @property
    def name(self) -> str:
        """What it is called in a record's reason."""
        return f"Triton's interpreter, as for {self.device}"

    def spec(self, device: int) -> DeviceSpec:
        """The device that is played."""
        return DeviceSpec.get(self.device)

    def choose(self, problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
        """The heuristic's answer for the device that is played."""
        return _heuristic(problem, DeviceSpec.get(self.device))

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        """Nothing to prepare: the interpreter reads the launch."""

        def step(stream: Any, buffers: Sequence[Any]) -> None:
            interpret_launch(launch, dict(zip(names, buffers, strict=True)))

        return step


class DriverExecutor(Executor):
    """Launches compiled kernels through one of Triton's drivers, here one that takes CPU tensors."""

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

    def spec(self, device: int) -> DeviceSpec | None:
        """A device of the target's architecture; an H100 on the native lane."""
        target = self.driver.get_current_target()
        if self.is_native:
            return DeviceSpec.get("h100")
        return DeviceSpec.get(f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch))

    def choose(self, problem: ConvProblem | LrnPoolProblem) -> KernelConfig:
        """The heuristic's answer for the target; on the native lane a tile that its lowering gets right."""
        if self.is_native:
            return native_config(problem)
        spec = DriverExecutor.spec(self, -1)
        assert spec is not None
        return _heuristic(problem, spec)

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        """Compile the launch, or find it compiled, and load it on the current device."""
        kernel = _compiled(launch, self.driver.get_current_target(), (self, device))
        return CompiledStep(kernel, launch, names)

    def stream(self, device: int) -> Any:
        """The current stream's handle."""
        return self.driver.get_current_stream(device)


class GpuExecutor(DriverExecutor):
    """Launches compiled kernels on the GPU of the tensors, as far as the policy and the records allow."""

    follows_records = True

    def spec(self, device: int) -> DeviceSpec | None:
        """The GPU itself."""
        return live_device(device)

    def is_capturing(self) -> bool:
        """Is a CUDA graph being captured on the current stream?"""
        return torch.cuda.is_current_stream_capturing()

    def why_nothing_compiles(self) -> str:
        """A CUDA graph is being captured, or Triton is interpreting."""
        if self.is_capturing():
            return (
                "a CUDA graph is being captured and this call has no plan yet; run it once before the capture, "
                "a whole model by `grouped_conv.warmup(model, example_input)`"
            )
        if isinstance(executor_of_cpu_tensors(), InterpreterExecutor):
            return "inside grouped_conv.interpret() Triton cannot compile; run the call once outside it"
        return ""


class CompiledStep:
    """A compiled kernel with its grid and all arguments but the tensors: no binder, no key string, no grid function."""

    __slots__ = ("arguments", "function", "grid", "kernel", "metadata", "run", "slots")

    def __init__(self, kernel: CompiledKernel, launch: Launch, names: Sequence[str]) -> None:
        position = {parameter: index for index, parameter in enumerate(launch.kernel.arg_names)}
        self.kernel = kernel
        self.run = kernel.run  # loads the module
        self.function = kernel.function
        self.metadata = kernel.packed_metadata
        self.grid = launch.grid
        self.arguments = launch.positional(dict.fromkeys(names))
        self.slots = tuple((position[buffer.parameter], names.index(buffer.name)) for buffer in launch.buffers)

    def __call__(self, stream: Any, buffers: Sequence[Any]) -> None:
        arguments = self.arguments.copy()
        for position, index in self.slots:
            arguments[position] = buffers[index]
        x, y, z = self.grid
        hook = triton.knobs.runtime.launch_enter_hook
        if getattr(hook, "calls", hook):  # a profiler: Triton keeps a chain of hooks there, a user a function or None
            self.kernel[self.grid](*arguments, stream=stream)
        else:
            self.run(x, y, z, stream, self.function, self.metadata, None, None, None, *arguments)


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
    chosen = _heuristic(problem, DeviceSpec.get("h100"))
    return family_of(chosen).one_warp(problem)


def _heuristic(problem: ConvProblem | LrnPoolProblem, device: DeviceSpec) -> KernelConfig:
    from grouped_conv.autotune.model import heuristic
    from grouped_conv.autotune.model.lrn_pool import forward as lrn_pool_model

    if isinstance(problem, LrnPoolProblem):
        return lrn_pool_model.choose(problem, device)
    return heuristic.choose(problem, device)


for_cpu_tensors: ContextVar[Executor | None] = ContextVar("grouped_conv_executor", default=None)
_gpu: GpuExecutor | None = None
_lock = threading.Lock()


def executor_of_cpu_tensors() -> Executor | None:
    """What `interpret()` or `through_driver()` has set here, or None."""
    return for_cpu_tensors.get()


def gpu_executor() -> GpuExecutor:
    """The executor of CUDA tensors, one per process."""
    global _gpu
    if _gpu is None:
        with _lock:
            _gpu = _gpu or GpuExecutor(triton.runtime.driver.active)
    return _gpu


@dataclass(frozen=True, slots=True)
class Place:
    """Where one call's tensors are and what can run kernels there.

    Attributes:
        executor: None for CPU tensors with nothing to run kernels.
        device: index of the tensors' CUDA device, -1 for the CPU.
        barred: why nothing may be compiled now; empty when it may.
    """

    executor: Executor | None
    device: int = -1
    barred: str = ""

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """The place of a tensor, here and now."""
        device = tensor.get_device()
        executor = gpu_executor() if device >= 0 else executor_of_cpu_tensors()
        return cls(executor, device, "" if executor is None else executor.why_nothing_compiles())

    @property
    def spec(self) -> DeviceSpec | None:
        """The device whose predictions count; None where nothing is known of it."""
        return None if self.executor is None else self.executor.spec(self.device)
