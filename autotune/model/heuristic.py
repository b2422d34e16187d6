"""A configuration without searching: each family's few defaults, ranked by the cost model.

Always answers, always validly; the same answer for the same problem and device. A few milliseconds, then remembered.
"""

from __future__ import annotations

from functools import lru_cache

from grouped_conv.autotune.model.families import models_for, predict
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


@lru_cache(maxsize=4096)
def choose(problem: ConvProblem, device: DeviceSpec, families: frozenset[str] | None = None) -> KernelConfig:
    """The configuration to use when nothing was tuned.

    Args:
        families: names of the kernel families to choose from; by default all.

    Raises:
        ValueError: when no configuration of any family can run the problem, with each family's reason.
    """
    valid, reasons = [], []
    for name, model in models_for(problem).items():
        if families is not None and name not in families:
            continue
        reason = "it has no configuration for such a problem"
        found = False
        for config in model.defaults(problem, device):
            why = why_invalid(problem, config, device)
            if why is None:
                valid.append(config)
                found = True
            else:
                reason = why
        if not found:
            reasons.append(f"{name}: {reason}")
    if not valid:
        raise ValueError(
            f"no kernel can run {problem} on {device.known_as} ({'; '.join(reasons) or 'no family allowed'})"
        )
    return min(valid, key=lambda config: predict(problem, config, device).weighed_us)
