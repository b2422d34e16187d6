"""What the tuner's records say about a convolution on a GPU of this machine, under the policy in force."""

from __future__ import annotations

import warnings

from grouped_conv.context.policies import is_strict
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.live_device import live_device

_warned: set[ConvProblem] = set()


def consult(problem: ConvProblem, policy: str, device: int) -> tuple[KernelConfig | None, str, str]:
    """The configuration (None for ATen), the reason, and the configuration's source; a look-up, nothing is tuned.

    Raises:
        UntunedError: in strict mode, for a convolution that is not tuned for this GPU.
    """
    from grouped_conv.autotune.lookup import resolve as lookup

    spec = live_device(device)
    if spec is None:
        reason = "no device of this GPU's architecture is known (see grouped_conv.DeviceSpec.all())"
        if is_strict():
            raise lookup.UntunedError(f"strict mode: {problem} cannot be tuned: {reason}")
        return None, reason, ""
    choice = lookup.resolve(problem, spec, policy, strict=is_strict(), place=f"cuda:{device}")
    if policy == "measured" and not choice.is_tuned:
        _warn_once(problem, choice.reason)
    return choice.config, choice.reason, choice.source


def generation() -> int:
    """Changes when the records change; part of the key of every CUDA call."""
    from grouped_conv.autotune.store import store

    return store.default_store().generation


def _warn_once(problem: ConvProblem, reason: str) -> None:
    if problem not in _warned:
        _warned.add(problem)
        warnings.warn(f"torch's own convolution runs {problem}: {reason}", stacklevel=2)
