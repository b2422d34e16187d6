"""What the measuring process does: verify a configuration against float64, time it, time PyTorch's own convolution.

One job at a time, one problem's tensors at a time. Failures that say something about a configuration are results;
any other exception is a bug and goes to the caller as an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from grouped_conv.autotune.machine_code.failures import classify
from grouped_conv.autotune.measuring.clocks import Clocks
from grouped_conv.autotune.measuring.live_tensors import OUTPUT, make_operands, poisoned_outputs
from grouped_conv.autotune.measuring.live_truth import computed, preactivation, relative_error
from grouped_conv.autotune.measuring.prepared import Prepared
from grouped_conv.autotune.measuring.timers import CpuTimer, CudaTimer, Timer
from grouped_conv.autotune.measuring.tolerance import allowed_error
from grouped_conv.autotune.model import native_lane
from grouped_conv.kernels.families import KernelConfig, why_invalid
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

AGAIN = 3
"""How often samples are taken again while the device is throttled."""
PAUSE_SECONDS = 2.0
MOST_PREPARED = 512
"""Loaded calls that are kept; a module takes some 100 kB of device memory."""

Failure = tuple[str, str]


class Bench:
    """Tensors of one problem with one seed, and the truth about them.

    Args:
        prepared: compiled calls by problem and configuration, which outlive the tensors.
    """

    def __init__(
        self,
        problem: ConvProblem,
        seed: int,
        place: torch.device,
        prepared: dict[tuple[ConvProblem, KernelConfig], Prepared],
    ) -> None:
        self.problem, self.seed, self.place, self.prepared = problem, seed, place, prepared
        self.operands = make_operands(problem, seed, place)
        self.exact = computed(problem, self.operands, torch.float64)
        self._sets: list[Mapping[str, Tensor]] = []

    def prepare(self, config: KernelConfig) -> Prepared | Failure:
        """The configuration compiled and loaded, or its failure."""
        known = self.prepared.get((self.problem, config))
        if known is not None:
            return known
        reason = why_invalid(self.problem, config)
        if reason is not None:
            return "invalid", reason
        made = self.attempt(lambda: Prepared(self.problem, config, self.place), True)
        if isinstance(made, Prepared):
            self.prepared[self.problem, config] = made
        return made

    def verify(self, config: KernelConfig) -> Failure | float:
        """The error, or the failure. Outputs are private and start as NaN."""
        prepared = self.prepare(config)
        if isinstance(prepared, tuple):
            return prepared
        outputs = poisoned_outputs(self.problem, self.place)

        def run() -> float:
            prepared.bound([{**self.operands, **outputs}])(0)
            error = relative_error(outputs[OUTPUT[self.problem.direction]], self.exact)
            if "preactivation" in outputs:
                before = preactivation(self.problem, self.operands, torch.float64)
                error = max(error, relative_error(outputs["preactivation"], before))
            return error

        error = self.attempt(run, False)
        if isinstance(error, tuple) or error <= allowed_error(self.problem):
            return error
        return (
            "wrong",
            f"differs from float64 by {error:.3g} of the largest value, allowed {allowed_error(self.problem):.3g}",
        )

    def runner(self, config: KernelConfig | None, copies: int) -> Callable[[int], None] | Failure:
        """What to time: a configuration, or PyTorch's own convolution."""
        while len(self._sets) < copies:
            first = not self._sets
            fresh = self.operands if first else {name: torch.clone(tensor) for name, tensor in self.operands.items()}
            self._sets.append({**fresh, **poisoned_outputs(self.problem, self.place)})
        sets = self._sets[:copies]
        if config is None:
            return self._by_torch(sets)
        prepared = self.prepare(config)
        return prepared if isinstance(prepared, tuple) else prepared.bound(sets)

    def _by_torch(self, sets: Sequence[Mapping[str, Tensor]]) -> Callable[[int], None]:
        dtype = getattr(torch, self.problem.dtype)

        def run(index: int) -> None:
            computed(self.problem, sets[index % len(sets)], dtype)

        return run

    def attempt(self, action: Callable[[], Any], compiling: bool) -> Any:
        """The action's result, or the failure that its exception means."""
        try:
            result = action()
            if self.place.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            kind = classify(error, compiling=compiling)
            if kind is None:
                raise
            return kind, f"{type(error).__name__}: {error}"[:2000]
        return result


class Session:
    """The process's device, its timer, and the bench of the problem in work."""

    def __init__(self, device: DeviceSpec, index: int, flags: Mapping[str, Any]) -> None:
        self.device = device
        self.timer: Timer
        if device.key == native_lane.KEY:
            import_module(native_lane.MODULE)
            self.place = torch.device("cpu")
            self.timer, self.clocks = CpuTimer(device.l2_bytes), Clocks()
        else:
            torch.cuda.set_device(index)
            self.place = torch.device("cuda", index)
            self.timer = CudaTimer(device.l2_bytes, self.place)
            self.clocks = Clocks.of_gpu(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        apply_flags(flags)
        self.bench: Bench | None = None
        self.prepared: dict[tuple[ConvProblem, KernelConfig], Prepared] = {}
        self.warm = False

    def bench_of(self, problem: ConvProblem, seed: int = 0) -> Bench:
        """The bench in work, or a new one in its place: tensors of one problem at a time."""
        if self.bench is None or (self.bench.problem, self.bench.seed) != (problem, seed):
            self.bench = None  # freed before the next one is made
            if len(self.prepared) > MOST_PREPARED:
                self.prepared.clear()
            self.bench = Bench(problem, seed, self.place, self.prepared)
        return self.bench

    def verify(self, problem: ConvProblem, config: KernelConfig, seed: int) -> dict[str, Any]:
        """Whether the configuration is right, and how long that took."""
        began = time.monotonic()
        found = self.bench_of(problem, seed).verify(config)
        seconds = round(time.monotonic() - began, 2)
        if isinstance(found, tuple):
            return {"failure": found[0], "detail": found[1], "seconds": seconds}
        return {"failure": None, "error": found, "seconds": seconds}

    def sample(self, problem: ConvProblem, config: KernelConfig | None, count: int) -> dict[str, Any]:
        """Times of the configuration, or of PyTorch's own convolution, in microseconds."""
        bench = self.bench_of(problem)
        run = bench.runner(config, 1)
        if isinstance(run, tuple):
            return {"failure": run[0], "detail": run[1]}
        if not self.warm:
            self.timer.warm_up(run)
            self.warm = True
        found = bench.attempt(lambda: self._times(bench, config, run, count), False)
        if isinstance(found, tuple):
            return {"failure": found[0], "detail": found[1]}
        return {"failure": None, **found, "protocol": self.timer.protocol}

    def _times(
        self, bench: Bench, config: KernelConfig | None, run: Callable[[int], None], count: int
    ) -> dict[str, Any]:
        size = sum(tensor.numel() * tensor.element_size() for tensor in bench.operands.values())
        copies = self.timer.copies(size, self.timer.estimate(run))
        if copies > 1:
            other = bench.runner(config, copies)
            run = run if isinstance(other, tuple) else other
        for _ in range(AGAIN):
            times = self.timer.times(run, copies, count)
            slow = self.clocks.why_slow()
            if not slow:
                break
            time.sleep(PAUSE_SECONDS)
        assert all(math.isfinite(value) for value in times)
        return {"us": times, "slow": slow}


def apply_flags(flags: Mapping[str, Any]) -> None:
    """Torch's settings of the process that tunes: PyTorch's own convolution is timed under them."""
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark = flags.get("enabled", True), flags.get("benchmark", False)
    cudnn.deterministic = flags.get("deterministic", False)
    cudnn.conv.fp32_precision = flags.get("fp32_precision", "none")  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(flags.get("algorithms", False), warn_only=flags.get("warn_only", False))
    if "threads" in flags:
        torch.set_num_threads(flags["threads"])


_session: Session | None = None


def measure_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job: `open` a device, `verify` a configuration or take `sample`s of it; all of it plain JSON."""
    global _session
    if job["op"] == "open":
        _session = Session(DeviceSpec.from_json(job["device"]), job["index"], job["flags"])
        return {"protocol": _session.timer.protocol}
    if _session is None:
        raise RuntimeError("no device was opened")
    problem = ConvProblem.from_json(job["problem"])
    config = None if job["config"] is None else KernelConfig.from_json(job["config"])
    if job["op"] == "verify":
        assert config is not None
        return _session.verify(problem, config, job["seed"])
    return _session.sample(problem, config, job["count"])
