"""Whether a call's kernels apply the activation's derivative while they load, or read a gradient that one pass wrote.

The pass that writes it sums the bias's gradient or stores the residual's, so no pass is added. What it writes is the
residual's gradient, wanted or not. A measured configuration runs as it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.gradient_call import written_problem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

Records = dict[str, CallRecord]
"""By direction."""
IN_LOADS = "the activation's gradient is taken in the loads"
WRITTEN = "channel_sums writes the activation's gradient"


def choose(
    loading: Records,
    decide: Callable[[ConvProblem, str, int], CallRecord],
    device: DeviceSpec | None,
    residual_strides: tuple[int, ...] | None,
    max_workspace: int,
) -> tuple[Records, bool]:
    """The records to run, each saying why, and whether the gradient is written before.

    Args:
        loading: kernels that load the gradient through the activation.
        decide: (problem, direction, workspace bytes) to the record of a kernel that reads the written gradient.
        device: whose predictions decide; None where nothing is known of it.
        residual_strides: strides of the residual's gradient, if it is wanted.
        max_workspace: bytes that the written gradient and the partial sums may take together.
    """
    from grouped_conv.autotune.model import written_gradient

    problems = {direction: _problem(record) for direction, record in loading.items()}
    plain = {direction: written_problem(problem) for direction, problem in problems.items()}
    if plain == problems:
        return loading, False
    size = 0 if residual_strides else written_gradient.written_bytes(next(iter(problems.values())))
    why = _why_not(loading, device, residual_strides, size, max_workspace)
    if why or device is None:
        return _saying(loading, f"{IN_LOADS}: {why}"), False
    reading = {direction: decide(problem, direction, max_workspace - size) for direction, problem in plain.items()}
    if any(record.config is None for record in reading.values()):
        return _saying(loading, f"{IN_LOADS}: not all kernels may run behind a written gradient"), False
    found = written_gradient.trade(_kernels(loading), _kernels(reading), device, size)
    if found.writes:
        return _saying(reading, f"{WRITTEN}: {found}"), True
    return _saying(loading, f"{IN_LOADS}: {found}"), False


def _why_not(
    loading: Records, device: DeviceSpec | None, residual_strides: tuple[int, ...] | None, size: int, limit: int
) -> str:
    """Why the gradient cannot be written, regardless of time; empty when it can."""
    if device is None:
        return "no device of this architecture is known"
    if any(record.source == "measured" for record in loading.values()):
        return "so it was measured"
    if residual_strides and residual_strides[1] != 1:
        return "the residual's gradient, the same tensor, has its channels outermost"
    if size > limit:
        return f"written it takes {size} bytes, more than the workspace's {limit}"
    return ""


def _problem(record: CallRecord) -> ConvProblem:
    assert isinstance(record.problem, ConvProblem)
    return record.problem


def _kernels(records: Mapping[str, CallRecord]) -> list[tuple[ConvProblem, KernelConfig]]:
    return [(_problem(record), record.config) for record in records.values() if record.config is not None]


def _saying(records: Records, why: str) -> Records:
    return {direction: replace(record, reason=f"{record.reason}; {why}") for direction, record in records.items()}
