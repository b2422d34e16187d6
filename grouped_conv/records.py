"""What the tuner's records say about a convolution on a GPU of this machine, under the policy in force."""

from __future__ import annotations

import warnings

from grouped_conv.kernels.config import ImplicitGemmConfig
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.live_device import live_device

_warned: set[ConvProblem] = set()


def consult(problem: ConvProblem, policy: str, device: int) -> tuple[ImplicitGemmConfig | None, str, str]:
    """The configuration (None for ATen), the reason, and the configuration's source; a look-up, nothing is tuned."""
    from grouped_conv.autotune import lookup

    spec = live_device(device)
    if spec is None:
        return None, "no device of this GPU's architecture is known (grouped_conv.DeviceSpec.all() lists them)", ""
    choice = lookup.resolve(problem, spec, policy)
    if choice.path == "kernel":
        return choice.config, choice.reason, choice.source
    if policy == "measured" and choice.config is None:
        _warn_once(problem, choice.reason)
    return None, choice.reason, choice.source


def _warn_once(problem: ConvProblem, reason: str) -> None:
    if problem in _warned:
        return
    _warned.add(problem)
    warnings.warn(
        f"torch runs this convolution: {reason}. `{tune_command(problem)}` would measure it. [{problem}]",
        stacklevel=2,
    )


def generation() -> int:
    """Changes when the records change; part of every key of a CUDA call."""
    from grouped_conv.autotune import lookup

    return lookup.generation()


def tune_command(problem: ConvProblem) -> str:
    """The command that measures `problem` on this machine."""
    return "grouped-conv tune"
