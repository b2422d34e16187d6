"""What the tuner's records say about a convolution on a GPU of this machine, under the policy in force."""

from __future__ import annotations

import warnings

from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.live_device import live_device

_warned: set[ConvProblem] = set()


def consult(problem: ConvProblem, policy: str, device: int) -> tuple[KernelConfig | None, str, str]:
    """The configuration (None for ATen), the reason, and the configuration's source; a look-up, nothing is tuned."""
    from grouped_conv.autotune import lookup

    spec = live_device(device)
    if spec is None:
        return None, "no device of this GPU's architecture is known (see grouped_conv.DeviceSpec.all())", ""
    choice = lookup.resolve(problem, spec, policy)
    if choice.path == "kernel":
        return choice.config, choice.reason, choice.source
    if policy == "measured" and not _is_measured(problem, spec):
        _warn_once(problem, choice.reason)
    return None, choice.reason, ""


def generation() -> int:
    """Changes when the records change; part of the key of every CUDA call."""
    from grouped_conv.autotune import store

    return store.default_store().generation


def _is_measured(problem: ConvProblem, device: DeviceSpec) -> bool:
    """Has someone measured this convolution here? Then ATen was chosen for its speed, and there is nothing to say."""
    from grouped_conv.autotune import store

    try:
        record = store.default_store().best(problem, device.key)
    except store.StoreError:
        return False
    return record is not None and record.measured_us is not None


def _warn_once(problem: ConvProblem, reason: str) -> None:
    if problem not in _warned:
        _warned.add(problem)
        warnings.warn(f"torch's own convolution runs {problem}: {reason}", stacklevel=2)
