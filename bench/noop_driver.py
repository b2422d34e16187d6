"""A Triton driver without a device: kernels are really bound, specialised and compiled, but launching does nothing.

It serves to measure the host's time of a launch, and to run launch code without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from grouped_conv.kernels.values.device import DeviceSpec

Launched = tuple[str, tuple[int, int, int], tuple[Any, ...]]
"""Kernel name, grid, arguments."""


class NoopLauncher:
    """Takes the place of Triton's C launcher."""

    log: list[Launched] | None = None

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: Any,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        if enter_hook is not None:
            enter_hook(launch_metadata)
        if NoopLauncher.log is not None:
            NoopLauncher.log.append((self.name, (x, y, z), arguments))
        if exit_hook is not None:
            exit_hook(launch_metadata)


class NoopDriver(DriverBase):
    """Answers Triton as the driver of a GPU would."""

    launcher_cls = NoopLauncher

    def __init__(self, device: DeviceSpec) -> None:
        self.target = GPUTarget(device.backend, device.arch, device.warp_size)
        limits = {"max_shared_mem": device.shared_per_block, "multiprocessor_count": device.sm_count}
        self.utils = SimpleNamespace(
            get_device_properties=lambda index: limits,
            # module, function, registers, spills, most threads of a block; without a module nothing is unloaded later
            load_binary=lambda name, binary, shared, index: (None, 1, 32, 0, 1024),
            unload_module=lambda module: None,
        )

    @classmethod
    def is_active(cls) -> bool:
        """Usable everywhere."""
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Types need no translation, because no C code is generated."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self.target

    def get_active_torch_device(self) -> torch.device:
        """Tensors are on the CPU."""
        return torch.device("cpu")

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Nothing to do."""

    def get_current_stream(self, device: int = 0) -> int:
        """The default stream."""
        return 0

    def get_device_interface(self) -> Any:
        """torch's module of the device."""
        return torch.cpu

    def get_benchmarker(self) -> Any:
        """There is nothing to time."""
        raise NotImplementedError("the no-op driver runs no kernel that could be timed")


@contextmanager
def noop_driver(device: DeviceSpec) -> Iterator[list[Launched]]:
    """Make a `NoopDriver` for `device` the active driver of Triton inside the block; yields the log of launches."""
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(NoopDriver(device))
    log: list[Launched] = []
    outer, NoopLauncher.log = NoopLauncher.log, log
    try:
        yield log
    finally:
        NoopLauncher.log = outer
        driver._active = before
