"""What times rest on: medians and intervals, the race, timers on invented clocks, throttling, tolerances, failures."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from grouped_conv.autotune.machine_code.failures import classify
from grouped_conv.autotune.measuring import clocks, timers
from grouped_conv.autotune.measuring.clocks import Clocks
from grouped_conv.autotune.measuring.live_tensors import make_operands, poisoned_outputs
from grouped_conv.autotune.measuring.prepared import Prepared
from grouped_conv.autotune.measuring.race import FINAL_SAMPLES, QUALIFYING, Rung, final_rungs, race
from grouped_conv.autotune.measuring.timers import CpuTimer, CudaTimer
from grouped_conv.autotune.measuring.tolerance import allowed_error, reduction_length
from grouped_conv.autotune.records.record import FAILURES
from grouped_conv.autotune.records.statistics import median_of
from grouped_conv.bench.noop_driver import noop_driver
from grouped_conv.kernels import ConvProblem, DeviceSpec, GroupLayout, ImplicitGemmConfig
from grouped_conv.kernels.gradient_call import gradient_problem

# ---- medians


def test_medians():
    assert median_of([3.0, 1.0, 2.0]).value == 2.0
    assert median_of([4.0, 1.0, 2.0, 3.0]).value == 2.5
    few = median_of([5.0, 1.0, 9.0])
    assert (few.low, few.value, few.high, few.samples) == (1.0, 5.0, 9.0, 3)
    with pytest.raises(ValueError, match="needs samples"):
        median_of([])


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    draw = random.Random(1)
    covered = 0
    for _ in range(2000):
        found = median_of([draw.expovariate(1.0) for _ in range(30)])
        covered += found.low <= 0.693147 <= found.high
    assert 0.94 <= covered / 2000 <= 0.985


# ---- the race


def steady(times):
    taken = Counter()

    def sample(who, count):
        taken[who] += count
        return [times[who]] * count

    return sample, taken


def test_losers_are_dropped_early():
    sample, taken = steady({"fast": 10.0, "close": 12.0, "far": 13.0, "hopeless": 25.0})
    medians = race(["fast", "close", "far", "hopeless"], sample, (*QUALIFYING, Rung(100, 10, 1.0)))
    assert taken == {"fast": 100, "close": 100, "far": 20, "hopeless": 5}
    assert {who: median.value for who, median in medians.items()} == {
        "fast": 10.0, "close": 12.0, "far": 13.0, "hopeless": 25.0,
    }  # fmt: skip


def test_who_is_kept_neither_drops_nor_is_dropped():
    sample, taken = steady({"ours": 10.0, "theirs": 1.0, "slow": 90.0})
    race(["ours"], sample, QUALIFYING, kept=("theirs", "slow"))
    assert taken == {"ours": 20, "theirs": 20, "slow": 20}


def test_who_fails_is_out():
    def sample(who, count):
        return None if who == "dies" else [1.0] * count

    assert race(["lives", "dies"], sample, QUALIFYING).keys() == {"lives"}


def test_rounds_are_interleaved_so_that_a_drifting_clock_hits_all_alike():
    """The device slows down by 1 % with every sample; the faster one must still win, whoever is sampled first."""
    samples = 0

    def sample(who, count):
        nonlocal samples
        samples += count
        return [{"fast": 10.0, "slow": 11.0}[who] * 1.01**samples] * count

    for order in (["fast", "slow"], ["slow", "fast"]):
        samples = 0
        medians = race(order, sample, (Rung(50, 2, float("inf")),))
        assert medians["fast"].value < medians["slow"].value


def test_samples_taken_before_count():
    sample, taken = steady({"a": 1.0})
    race(["a"], sample, (Rung(20, 5, 2.0),), begun={"a": [1.0] * 5})
    assert taken == {"a": 15}


def test_a_final_of_long_kernels_takes_fewer_samples():
    assert final_rungs([10.0, 20.0])[0].samples == FINAL_SAMPLES
    assert final_rungs([4e5, 4e5])[0].samples == 25
    assert final_rungs([1e9])[0].samples == 20


# ---- timers


class FakeCuda:
    """`torch.cuda` on a clock that only launches move; graphs record what is launched into them."""

    def __init__(self, launch_us: float, replay_us: float) -> None:
        self.now, self.launch_us, self.replay_us = 0.0, launch_us, replay_us
        self.graphs: list[list[int]] = []
        self.capturing: list[int] | None = None
        self.launched: list[int] = []

    def run(self, index: int) -> None:
        if self.capturing is not None:
            self.capturing.append(index)
            return
        self.launched.append(index)
        self.now += self.launch_us

    def Event(self, enable_timing: bool) -> object:
        event = SimpleNamespace(elapsed_time=lambda other: (other.at - event.at) / 1e3)
        event.record = lambda: setattr(event, "at", self.now)
        return event

    def CUDAGraph(self) -> object:
        launches: list[int] = []
        self.graphs.append(launches)

        def replay() -> None:
            self.now += self.replay_us * len(launches)

        return SimpleNamespace(launches=launches, replay=replay)

    @contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        self.capturing = graph.launches
        yield
        self.capturing = None

    def synchronize(self) -> None:
        pass


def test_long_kernels_are_timed_by_events():
    cuda = FakeCuda(launch_us=80.0, replay_us=70.0)
    timer = CudaTimer(1 << 20, "cpu", cuda)
    assert timer.copies(1 << 10, timer.estimate(cuda.run)) == 1
    assert timer.times(cuda.run, 1, 7) == [pytest.approx(80.0)] * 7
    assert cuda.graphs == []


def test_short_kernels_are_timed_in_a_graph_over_rotating_operands():
    cuda = FakeCuda(launch_us=9.0, replay_us=4.0)
    timer = CudaTimer(1 << 20, "cpu", cuda)
    copies = timer.copies(1 << 18, timer.estimate(cuda.run))
    assert copies == 8  # twice the cache
    assert timer.times(cuda.run, copies, 5) == [pytest.approx(4.0)] * 5
    assert cuda.graphs == [list(range(24))]  # whole turns, at least 20 launches
    assert timer.copies(1 << 30, 9.0) == 1
    assert timer.copies(1, 9.0) == 64


def test_the_cpus_clock():
    ticks = iter(range(1000))
    timer = CpuTimer(1 << 10, lambda: next(ticks) * 1e-6)
    assert timer.times(lambda index: None, 1, 3) == [pytest.approx(1.0)] * 3
    assert timer.copies(1, 1.0) == 1


def test_the_warm_up_ends_when_times_are_steady_and_never_later_than_its_limit():
    now = 0.0

    def rough(values=iter([*([9.0] * 10), *([7.0] * 10), *([6.0] * 10), *([6.0] * 10)])):
        nonlocal now
        now += 0.01
        return next(values)

    assert timers.until_steady(rough, 100.0, lambda: now) == pytest.approx(0.4)

    def drifting():
        nonlocal now
        now += 0.01
        return now

    began = now
    assert timers.until_steady(drifting, 1.0, lambda: now) == pytest.approx(1.0, abs=0.11)
    assert now - began <= 1.11


def test_a_call_is_prepared_and_launched_through_the_drivers_path():
    problem = ConvProblem.of((1, 32, 8, 8), (32, 32, 3, 3), padding=1, dtype="float16")
    config = ImplicitGemmConfig(block_m=32, block_n=32, block_k=32, num_warps=4, num_stages=2, split_k=2)
    place = torch.device("cpu")
    with noop_driver(DeviceSpec.get("a100")) as log:
        tensors = {**make_operands(problem, 0, place), **poisoned_outputs(problem, place)}
        run = Prepared(problem, config, place).bound([tensors, tensors])
        run(0)
        run(3)
    assert [name for name, _, _ in log] == ["implicit_gemm", "split_reduce"] * 2
    workspaces = [argument for argument in log[0][2] if torch.is_tensor(argument) and argument.dim() == 3]
    assert all(bool(workspace.isnan().all()) for workspace in workspaces)


# ---- throttling


class FakeNvml:
    def __init__(self, reasons, mhz):
        self.reasons, self.mhz = reasons, iter(mhz)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return next(self.mhz)


def test_throttling_is_noticed():
    assert Clocks().why_slow() == ""  # nothing known, nothing discarded
    assert Clocks(FakeNvml(0x40, [1000]), 0).why_slow() == "throttled: thermal, hardware"
    assert Clocks(FakeNvml(0x4, [1000]), 0).why_slow() == ""  # at the power cap, as under any load
    watched = Clocks(FakeNvml(0, [1980, 1980, 1700, 1980]), 0)
    assert [watched.why_slow() for _ in range(4)] == ["", "", "clock of 1700 MHz, usually 1980", ""]


def test_without_nvml_one_is_blind(monkeypatch):
    monkeypatch.setattr(clocks, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    assert Clocks.of_gpu("GPU-0").why_slow() == ""


# ---- tolerances


def test_tolerance_grows_with_the_reduction_and_the_format():
    def problem(dtype, channels=48, precision="ieee"):
        return ConvProblem.of((2, channels, 9, 9), (8, channels, 5, 5), dtype=dtype, precision=precision)

    exact, half, brain = (allowed_error(problem(dtype)) for dtype in ("float32", "float16", "bfloat16"))
    assert 1e-6 < exact < 1e-5 < half < 3e-3 < brain < 2e-2
    assert allowed_error(problem("float32", precision="tf32")) > 100 * exact
    assert allowed_error(problem("float32", 480)) > 2 * exact


def test_reduction_lengths():
    forward = ConvProblem.of((4, 32, 9, 9), (64, 16, 3, 3), padding=1, groups=2)
    assert reduction_length(forward) == 9 * 16
    assert reduction_length(gradient_problem(forward, "input_grad")) == 9 * 32
    assert reduction_length(gradient_problem(forward, "weight_grad")) == 4 * 81
    ragged = ConvProblem(1, GroupLayout.sizes([3, 5], [4, 2]), (9, 9), (3, 3))
    assert reduction_length(ragged) == 9 * 5


# ---- failures


def test_known_exceptions_have_a_kind_and_others_propagate():
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    assert classify(OutOfResources(300, 200, "shared memory"), compiling=False) == "resources"
    assert classify(torch.OutOfMemoryError("no"), compiling=False) == "resources"
    assert (
        classify(CompilationError("x = 1", type("Node", (), {"lineno": 1, "col_offset": 0})()), compiling=True)
        == "compile"
    )
    assert classify(RuntimeError("PassManager::run failed"), compiling=True) == "compile"
    assert classify(RuntimeError("CUDA error: an illegal memory access"), compiling=False) == "launch"
    for fault in (KeyError("x"), TypeError("x"), AssertionError("x"), NotImplementedError("x"), RecursionError("x")):
        assert classify(fault, compiling=True) is None
    assert {"resources", "compile", "launch"} <= set(FAILURES)
