"""Compiling a convolution for a device that need not be there: `compile_offline`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from triton.backends.compiler import GPUTarget

from grouped_conv.autotune.machine_code.resources import Resources, read_resources
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.kernels.call import plan
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.launching.launch import Launch, compile_launch
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel


@dataclass(frozen=True)
class CompiledLaunch:
    """One launch of a call with its compiled code.

    Attributes:
        launch: the launch as planned.
        kernel: Triton's compiled kernel.
    """

    launch: Launch
    kernel: CompiledKernel

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.launch.name

    @property
    def config(self) -> KernelConfig:
        """Block sizes and pipeline of this launch."""
        return self.launch.config

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs along each axis."""
        return self.launch.grid

    @property
    def trips(self) -> int:
        """Iterations of the source's inner loop in one program."""
        return self.launch.trips

    @cached_property
    def resources(self) -> Resources:
        """Registers, spills, shared memory and instruction mix, read from the machine code on first use."""
        return read_resources(self.kernel)


def gpu_target(device: DeviceSpec) -> GPUTarget:
    """`device` as Triton's compiler names it."""
    return GPUTarget(device.backend, device.arch, device.warp_size)


def compile_offline(
    problem: ConvProblem, device: DeviceSpec | str, config: KernelConfig | None = None
) -> list[CompiledLaunch]:
    """Compile every launch of `problem`, a forward pass or a gradient, for `device`; needs no GPU.

    Args:
        device: a specification, or a name `DeviceSpec.get` knows (`"h100"`, `"sm_90"`).
        config: a configuration of any family; the heuristic's choice by default.

    Returns:
        One entry per launch, in launch order, each with `.kernel`, `.config`, `.grid`, `.trips` and `.resources`.

    Raises:
        ValueError: for an unknown device, or a configuration that cannot run the problem there, with the reason.
    """
    spec = DeviceSpec.get(device) if isinstance(device, str) else device
    chosen = choose(problem, spec) if config is None else config
    reason = why_invalid(problem, chosen, spec)
    if reason is not None:
        raise ValueError(f"{chosen} cannot run {problem} on {spec.known_as}: {reason}")
    return compiled_launches(problem, chosen, spec)


def compiled_launches(problem: ConvProblem, config: KernelConfig, device: DeviceSpec) -> list[CompiledLaunch]:
    """The launches of a configuration that can run the problem on the device, compiled, in launch order."""
    target = gpu_target(device)
    return [CompiledLaunch(launch, compile_launch(launch, target)) for launch in plan(problem, config).launches]
