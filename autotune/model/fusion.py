"""One kernel or two calls for a grouped convolution and the 1x1 convolution after it: the planner.

Everything here is predicted. `plan_fusion` is a pure function of the problem and the device; its reason names what
decided: a limit of the device, how often the first convolution would be computed, or the predicted times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from grouped_conv.autotune.model.families import MODELS, predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.shared.machine import dram_us
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, tiles
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec

MARGIN = 0.9
"""Share of the two calls' predicted time that the fused kernel must stay below: different models predict the two."""
CACHED_SHARE = 0.5
"""Share of L2 in which the tensor between two calls is taken to survive until the second reads it; assumed."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """The planner's answer.

    Attributes:
        config: the fused kernel's configuration, or None for two calls.
        reason: what decided, with its numbers; times are predicted.
        fused: the prediction of the best fused configuration; None where none fits.
        separate_us: predicted microseconds of the two calls.
    """

    config: SeparableConfig | None
    reason: str
    fused: Prediction | None
    separate_us: float

    @property
    def is_fused(self) -> bool:
        """True for one kernel."""
        return self.config is not None


@lru_cache(maxsize=4096)
def plan_fusion(problem: SeparableProblem, device: DeviceSpec) -> Fusion:
    """One kernel or two calls for `problem` on `device`, and why; a prediction, nothing is compiled."""
    separate = separate_us(problem, device)
    valid, reasons = [], []
    for config in MODELS["separable"].defaults(problem, device):
        reason = why_invalid(problem, config, device)
        if reason is None:
            valid.append(config)
        else:
            reasons.append(reason)
    if not valid:
        reason = reasons[-1] if reasons else "the fused kernel has no configuration for such a problem"
        return Fusion(None, f"two calls: {reason}", None, separate)
    config = min(valid, key=lambda one: predict(problem, one, device).weighed_us)
    fused = predict(problem, config, device)
    again = tiles(problem, config)[1]
    times = f"predicted {fused.us:.1f} us in one kernel, {separate:.1f} us in two calls"
    saved = f"{problem.saved_bytes / 1e6:.1f} MB less memory traffic"
    if fused.us <= MARGIN * separate:
        return Fusion(config, f"fused: {times}; {saved}", fused, separate)
    cost = f"the first convolution would be computed {again} times" if again > 1 else f"bound by {fused.bound}"
    return Fusion(None, f"two calls: {times}; {cost} for {saved}", fused, separate)


def separate_us(problem: SeparableProblem, device: DeviceSpec) -> float:
    """Predicted microseconds of the two calls, each with the heuristic's configuration.

    Where the tensor between them fits L2, its traffic is not counted for calls that DRAM limits.
    """
    kept = problem.saved_bytes / 2 <= CACHED_SHARE * device.l2_bytes
    relief = dram_us(problem.saved_bytes / 2, device) if kept else 0.0
    total = 0.0
    for part in (problem.first, problem.second):
        found = predict(part, choose(part, device), device)
        total += found.us - (min(relief, found.us / 2) if found.bound == "dram" else 0.0)
    return total
