"""What every family's cost model answers with, and what they share: the roofline floor, waves, and the passes around.

Nothing here was measured: a `Prediction` is never a timing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from grouped_conv.autotune.model.shared.machine import dram_us
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MODEL_VERSION = 3
"""Raised by hand whenever a model changes: stored predictions of another version are made anew."""
LAUNCH_US = 1.5
"""Start and drain of one kernel in a busy stream; assumed. Host time is hidden behind the GPU's.

With the latency of its loads and stores, which the models add, an empty kernel comes to about 2.3 us. A copy of 32 KB
repeated in a CUDA graph takes 1.4 us each on A100 and 2.3 us on H200, launched one by one 2.7 and 2.5 us
(github.com/te42kyfo/gpu-benches, gpu-small-kernels). Events around a kernel and a cold L2 cost more, see
`bench.model_quality`.
"""
WASTE_LIMIT = 0.95
"""Padding efficiency below which a configuration is handicapped, see `weighed_us`; assumed."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one call.

    Attributes:
        us: predicted time of all launches, in microseconds.
        floor_us: roofline floor, the larger of FLOPs at peak rate and compulsory bytes at peak bandwidth.
        padding_efficiency: useful products / issued products of the tiles.
        wave_efficiency: programs / (multiprocessors * ceil(programs / multiprocessors)).
        bound: the term that decides: tensor, issue, shared, l2, dram, latency, passes or launch.
        terms: microseconds of each term alone.
    """

    us: float
    floor_us: float
    padding_efficiency: float
    wave_efficiency: float
    bound: str
    terms: Mapping[str, float]

    @property
    def weighed_us(self) -> float:
        """What configurations are ranked by: `us`, and as much more as padding wastes beyond `WASTE_LIMIT`.

        Issued products are counted exactly, while the terms they are traded against rest on assumed rates: a tile that
        wastes a quarter of its products has to be predicted about a quarter faster to win.
        """
        return self.us * (1 + max(0.0, WASTE_LIMIT - self.padding_efficiency))


def floor_us(problem: ConvProblem, device: DeviceSpec) -> float:
    """Roofline floor in microseconds: no implementation of these products and bytes can be faster at peak rates."""
    compute = 2 * problem.macs / device.peak_flops(problem.dtype, problem.precision)
    return 1e6 * max(compute, problem.min_bytes / device.dram_bytes_per_s)


def wave_efficiency(programs: int, device: DeviceSpec) -> float:
    """How full the multiprocessors are, counting whole rounds of one program each."""
    return programs / (device.sm_count * max(1, math.ceil(programs / device.sm_count)))


def pack_passes(problem: ConvProblem, device: DeviceSpec) -> tuple[float, int]:
    """(microseconds without launches, launches) of the passes that move channels innermost: each reads and writes once.

    The weight's pass is counted where the weight does not lie as [K, R, S, C / groups] or, for unequal groups, where
    its parts are not channels_last.
    """
    packed = launches = 0
    connections = problem.layout.connections()
    for elements, channels, positions, channels_last in (
        (math.prod(problem.input_shape), problem.in_channels, math.prod(problem.in_size), problem.input_channels_last),
        (problem.taps * connections, connections // problem.out_channels, problem.taps, problem.weight_channels_last),
    ):
        if not channels_last and channels > 1 and positions > 1:
            packed += 2 * elements * problem.item_size
            launches += 1
    return dram_us(packed, device), launches
