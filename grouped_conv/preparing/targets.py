"""Where `tune` tunes: a device that is here, or one to predict for. Imports torch only where there may be a GPU.

Tuning for a named device only compiles. It needs neither torch, which takes seconds to import, nor our modules that
import it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.measuring.self_check import check_kernels
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.search.efforts import Plan
from grouped_conv.autotune.search.predicted_runner import PredictedRunner
from grouped_conv.autotune.search.runner import Runner
from grouped_conv.autotune.search.tuned_table import Tuned
from grouped_conv.autotune.search.tuner import Progress, tune_with
from grouped_conv.autotune.store.store import Store
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

DRIVER_NODES = ("nvidia*", "nvmap", "nvgpu*", "dxg", "kfd")
"""Device files on Linux of NVIDIA's drivers (also Jetson's and WSL's) and AMD's: no GPU can be used without one."""


def may_have_gpu() -> bool:
    """May torch find a GPU? False only where it surely finds none."""
    if "torch" in sys.modules or sys.platform != "linux":
        return True
    return any(True for pattern in DRIVER_NODES for _ in Path("/dev").glob(pattern))


def default_device() -> str | None:
    """`cuda` where there is a GPU."""
    if not may_have_gpu():
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


@dataclass(frozen=True, slots=True)
class Target:
    """Where to tune.

    Attributes:
        spec: the device.
        index: number of the CUDA device to measure on; None where nothing is measured, -1 for the native lane.
    """

    spec: DeviceSpec
    index: int | None = None

    @property
    def measures(self) -> bool:
        """Whether the device is there."""
        return self.index is not None

    def runner(self, jobs: int | None) -> Runner:
        """A runner for the device, to be opened."""
        if self.index is None:
            return PredictedRunner(self.spec, jobs)
        return LiveRunner(self.spec, self.index, jobs=jobs)


def target_of(device: Any, example_input: Any = None) -> Target:
    """The device that `tune` means.

    Args:
        device: a `DeviceSpec`, or a name `DeviceSpec.get` knows, for predictions, but where the current GPU is of that
            model it is measured; a CUDA device as torch names it, or `cpu-native`, for measurements; None for the GPU
            of `example_input` or the current one.

    Raises:
        ValueError: for a name nobody knows, a GPU whose architecture the kernels do not know, or without any GPU.
    """
    if isinstance(device, DeviceSpec):
        return Target(device)
    if device == native_lane.KEY:
        return Target(native_lane.DEVICE, -1)
    if isinstance(device, str) and device.partition(":")[0] != "cuda":
        spec = DeviceSpec.get(device)
        if not may_have_gpu():
            return Target(spec)
    import torch

    from grouped_conv.planning.live_device import live_device

    if device is None:
        tensors = example_input if isinstance(example_input, tuple) else (example_input,)
        placed = [value.device for value in tensors if isinstance(value, torch.Tensor) and value.is_cuda]
        if not placed and not torch.cuda.is_available():
            raise ValueError(
                "no GPU is here to measure on; name one to predict for, such as device='h100' (known: "
                f"{', '.join(spec.key for spec in DeviceSpec.all())})"
            )
        device = placed[0] if placed else torch.device("cuda")
    if isinstance(device, str) and device.partition(":")[0] != "cuda":
        here = live_device(torch.cuda.current_device()) if torch.cuda.is_available() else None
        if here is None or here.key != spec.key:
            return Target(spec)
        device = torch.device("cuda")
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"device {str(place)!r} is no GPU of this machine")
    index = torch.cuda.current_device() if place.index is None else place.index
    found = live_device(index)
    if found is None:
        raise ValueError(f"the kernels do not know the architecture of {torch.cuda.get_device_name(index)}")
    return Target(found, index)


def tune_on(
    target: Target,
    problems: Mapping[str, ConvProblem],
    store: Store,
    plan: Plan,
    progress: Progress | None,
    jobs: int | None = None,
) -> Tuned:
    """Tune for one device; where it is measured, check the families that won and were never checked there.

    Ctrl-C ends either in good order.
    """
    spec = target.spec
    if spec.key == native_lane.KEY:
        problems = {name: native_lane.as_computed(problem) for name, problem in problems.items()}
    with target.runner(jobs) as runner:
        tuned = tune_with(runner, problems, spec, store, plan, progress)
        if isinstance(runner, LiveRunner) and not tuned.interrupted:
            winners = [best for search in tuned.searches if (best := search.best()) is not None]
            pairs = dict.fromkeys((best.config.family, best.config.direction) for best in winners)
            known = store.self_checks(spec.key)
            try:
                check_kernels(spec, store, [pair for pair in pairs if pair not in known], runner=runner)
            except KeyboardInterrupt:
                tuned = replace(tuned, interrupted=True)
    return tuned
