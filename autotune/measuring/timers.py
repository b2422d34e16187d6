"""Timing back ends with one interface: CUDA events and graphs, and the CPU's clock for the native lane.

A timer runs a launch several times and returns one time per run in microseconds. Each run finds its operands out of the
cache: a network's layer does not find its input in L2 either, unless it is small.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

Run = Callable[[int], None]
"""Launches on one of several equal sets of operands; the argument says which, modulo their number."""

GRAPH_BELOW_US = 50.0
"""Kernels shorter than this are timed inside a CUDA graph: one by one, the host's 5 to 10 us would rank them."""
UNROLL = 20
"""Launches in a graph, at least."""
WARM_UP_SECONDS = 2.0
"""Time limit of the warm-up. It ends earlier, when clocks are steady."""
STEADY = 0.01


class Timer(Protocol):
    """Measures launches on one device."""

    protocol: str
    """Name of the recipe: times of two recipes do not compare."""

    def warm_up(self, run: Run) -> float:
        """Bring the device to the temperature and clocks of steady work, once per session; returns the seconds."""

    def copies(self, operand_bytes: int, us: float) -> int:
        """Sets of operands that a kernel of this length needs, so that none is found in the cache."""

    def estimate(self, run: Run) -> float:
        """A rough time in microseconds."""

    def times(self, run: Run, copies: int, count: int) -> list[float]:
        """One time per run, operands cold."""


def until_steady(rough: Callable[[], float], limit: float = WARM_UP_SECONDS, clock: Any = time.perf_counter) -> float:
    """Call `rough`, which returns a time, until two means of ten agree within `STEADY`; returns the seconds it took."""
    began = clock()
    before = None
    while clock() - began < limit:
        mean = statistics.fmean(rough() for _ in range(10))
        if before is not None and abs(mean - before) <= STEADY * before:
            break
        before = mean
    return float(clock() - began)


class CpuTimer:
    """The CPU's clock around each run, after writing through a buffer as large as the last-level cache."""

    protocol = "cpu-1: perf_counter, cold cache"

    def __init__(self, cache_bytes: int, clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self._clock = clock
        self._flush = torch.zeros(cache_bytes // 4, dtype=torch.float32)

    def warm_up(self, run: Run) -> float:
        """Until times are steady."""
        return until_steady(lambda: self.estimate(run), clock=self._clock)

    def copies(self, operand_bytes: int, us: float) -> int:
        """One: the flush makes it cold."""
        return 1

    def estimate(self, run: Run) -> float:
        """One run."""
        began = self._clock()
        run(0)
        return 1e6 * (self._clock() - began)

    def times(self, run: Run, copies: int, count: int) -> list[float]:
        """Each run follows a flush."""
        found = []
        for _ in range(count):
            self._flush.add_(1.0)
            found.append(self.estimate(run))
        return found


class CudaTimer:
    """Events around each launch, after a flush of L2; short kernels many at a time in a graph over rotating operands.

    Args:
        cache_bytes: size of L2.
        device: of the flush buffer.
        cuda: `torch.cuda`, or a stand-in in tests.
    """

    protocol = "cuda-1: events behind an L2 flush; graph of rotating operands below 50 us"

    def __init__(self, cache_bytes: int, device: Any = "cuda", cuda: Any = None) -> None:
        import torch

        self._cuda = torch.cuda if cuda is None else cuda
        self._cache_bytes = cache_bytes
        self._flush = torch.zeros(max(cache_bytes, 4) // 4, dtype=torch.int32, device=device)

    def warm_up(self, run: Run) -> float:
        """Until times are steady."""
        return until_steady(lambda: self.estimate(run))

    def copies(self, operand_bytes: int, us: float) -> int:
        """Twice the cache's size for short kernels, at most 64 sets; one set for those that are flushed for."""
        if us >= GRAPH_BELOW_US:
            return 1
        return max(1, min(64, -(-2 * self._cache_bytes // max(operand_bytes, 1))))

    def estimate(self, run: Run) -> float:
        """The median of three launches by events; the first launch of all loads the kernel and is not timed."""
        run(0)
        return statistics.median(self._by_events(run, 3))

    def times(self, run: Run, copies: int, count: int) -> list[float]:
        """By a graph where the kernel is short, by events otherwise."""
        if self.estimate(run) < GRAPH_BELOW_US:
            return self._by_graph(run, copies, count)
        return self._by_events(run, count)

    def _by_events(self, run: Run, count: int) -> list[float]:
        pairs = []
        for index in range(count):
            begin, end = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
            self._flush.zero_()  # its 20 us also hide the host's work on the next launch
            begin.record()
            run(index)
            end.record()
            pairs.append((begin, end))
        self._cuda.synchronize()
        return [1e3 * begin.elapsed_time(end) for begin, end in pairs]

    def _by_graph(self, run: Run, copies: int, count: int) -> list[float]:
        launches = copies * -(-UNROLL // copies)
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph):
            for index in range(launches):
                run(index)
        graph.replay()
        pairs = []
        for _ in range(count):
            begin, end = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            pairs.append((begin, end))
        self._cuda.synchronize()
        return [1e3 * begin.elapsed_time(end) / launches for begin, end in pairs]
