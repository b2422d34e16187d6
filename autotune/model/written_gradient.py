"""Should one pass write the activation's gradient for the kernels that follow, or each take it itself? By predictions.

In the loads each gradient is read with the map that its derivative needs, through registers, and the derivative is
computed again for every tap and tile. Written once it costs one more store, and the kernels copy it straight to shared
memory. Nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from grouped_conv.autotune.model.cost import predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.shared.machine import dram_us
from grouped_conv.kernels.gradient_call import gradient_problem, written_problem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

Kernels = Sequence[tuple[ConvProblem, KernelConfig]]
LEAST_GAIN = 0.02
"""Share of the time that writing must save: predictions closer than that say nothing, and the buffer takes memory."""


class Trade(NamedTuple):
    """Predicted microseconds of the kernels: with the activation in their loads, and with its gradient written."""

    loaded_us: float
    written_us: float

    @property
    def writes(self) -> bool:
        """Is writing the gradient worth it?"""
        return self.written_us < (1 - LEAST_GAIN) * self.loaded_us

    def __str__(self) -> str:
        return f"predicted {self.written_us:.1f} us written, {self.loaded_us:.1f} us in the loads"


def trade(loading: Kernels, reading: Kernels, device: DeviceSpec, stored_bytes: int) -> Trade:
    """The two sides for kernels of one call, whose pass over the gradient runs in any case.

    Args:
        loading: problems and configurations with the activation in their loads.
        reading: the same behind a written gradient.
        stored_bytes: that only writing stores: nothing where the residual's gradient is the same tensor.
    """
    loaded, written = (sum(predict(*kernel, device).us for kernel in kernels) for kernels in (loading, reading))
    return Trade(loaded, written + dram_us(stored_bytes, device))


def default_trade(problem: ConvProblem, device: DeviceSpec) -> Trade:
    """The two sides for both gradients of a forward problem at the heuristic's configurations."""
    loading = [gradient_problem(problem, direction) for direction in ("input_grad", "weight_grad")]
    reading = [written_problem(one) for one in loading]
    stored = 0 if problem.epilogue.residual else written_bytes(problem)
    return trade(_defaults(loading, device), _defaults(reading, device), device, stored)


def _defaults(problems: Sequence[ConvProblem], device: DeviceSpec) -> Kernels:
    return [(problem, choose(problem, device)) for problem in problems]


def written_bytes(problem: ConvProblem) -> int:
    """Bytes of the written gradient."""
    return math.prod(problem.output_shape) * problem.item_size
