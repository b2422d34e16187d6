"""The one predicate that says whether a configuration can run a problem, with the reason when it cannot."""

from __future__ import annotations

from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.gradient_families import GRADIENT_FAMILIES
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


def why_invalid(problem: ConvProblem, config: KernelConfig, device: DeviceSpec | None = None) -> str | None:
    """`None` when `config` can run `problem` (on `device`, if given); otherwise one line that says why not."""
    family = GRADIENT_FAMILIES.get(config.family) or family_of(config)
    return family.why_invalid(problem, config) or (
        None if device is None else family.why_not_on(problem, config, device)
    )
