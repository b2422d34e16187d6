"""Running the real kernels on CPU tensors: `interpret()` for everyone, `through_driver()` for benchmarks and tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import triton

from grouped_conv.context.overrides import using_config
from grouped_conv.kernels.interpreting.interpreter import interpreting
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.planning.executors import DriverExecutor, Executor, InterpreterExecutor, for_cpu_tensors


@contextmanager
def interpret(config: KernelConfig | None = None, *, device: str = "h100-sxm") -> Iterator[None]:
    """Run convolutions of CPU tensors with the real kernels, in Triton's interpreter, inside the block.

    Every supported dtype takes this path under every policy, unless the call says `backend="aten"`. It is slow: the
    time is proportional to the number of programs times their loop trips. Other threads that interpret or compile wait
    until the block ends.

    Args:
        config: the configuration to run; by default the heuristic's choice for `device`.
        device: name of the GPU whose configurations are used, as `DeviceSpec.get` takes it.

    Raises:
        ValueError: for an unknown device, and at a call if `config` cannot run the problem.
    """
    with _cpu_tensors_by(InterpreterExecutor(DeviceSpec.get(device).key)), using_config(config), interpreting():
        yield


@contextmanager
def through_driver(config: KernelConfig | None = None) -> Iterator[None]:
    """Run convolutions of CPU tensors by compiled kernels through Triton's active driver, inside the block.

    For drivers that take CPU tensors: the no-op driver of the launch benchmark, and a lane that compiles for the CPU.
    """
    with _cpu_tensors_by(DriverExecutor(triton.runtime.driver.active)), using_config(config):
        yield


@contextmanager
def _cpu_tensors_by(executor: Executor) -> Iterator[None]:
    token = for_cpu_tensors.set(executor)
    try:
        yield
    finally:
        for_cpu_tensors.reset(token)
