"""An executor that plays a GPU for CPU tensors: policies and records decide, and kernels compile to nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from grouped_conv.bench.noop_driver import NoopDriver
from grouped_conv.kernels import DeviceSpec
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.planning.decisions import Conditions
from grouped_conv.planning.executors import GpuExecutor, Place, Step, for_cpu_tensors


class PlayedGpu(GpuExecutor):
    """Notes the names of the kernels that it would compile. While `captures` is set, a CUDA graph is being captured.

    Args:
        spec: the GPU; None for one of an unknown architecture.
    """

    def __init__(self, spec: DeviceSpec | None) -> None:
        super().__init__(NoopDriver(spec or DeviceSpec.get("h100")))
        self.played, self.captures, self.compiled = spec, False, list[str]()

    def spec(self, device: int) -> DeviceSpec | None:
        return self.played

    def is_capturing(self) -> bool:
        return self.captures

    def prepare(self, launch: Launch, names: Sequence[str], device: int) -> Step:
        self.compiled.append(launch.name)
        return lambda stream, buffers: None


@contextmanager
def playing(spec: DeviceSpec | None) -> Iterator[PlayedGpu]:
    """CPU tensors are on this GPU inside the block."""
    gpu = PlayedGpu(spec)
    token = for_cpu_tensors.set(gpu)
    try:
        yield gpu
    finally:
        for_cpu_tensors.reset(token)


def conditions_on(spec: DeviceSpec | None, policy: str, **changes: Any) -> Conditions:
    """`Conditions` of a call on this GPU."""
    place = Place(PlayedGpu(spec), changes.pop("device", 0), changes.pop("barred", ""))
    return Conditions(place, policy, **{"backend": "auto", **changes})
