"""Whether the activation's gradient is written once for the kernels of a call, or computed by each as it loads.

A pass over the output's gradient sums the bias's gradient or stores the residual's. Where it runs anyway, and there is
an activation, it also writes the gradient that the kernels then read as it is. No pass is added for this.

Predictions support no finer rule. Over 6,624 calls (92 layers of AlexNet, ResNeXt-50, MobileNetV2, ShuffleNet, RegNetX
and ConvNeXt-T; batches 1 to 128; fp16 and fp32; five activations, with and without a residual; A100, H100, MI300X),
writing halves the time at every batch size and is predicted to be slower in 81 of them, by at most 2.2 us. At batch 128
it always wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels.gradient_call import written_problem
from grouped_conv.kernels.values.problem import ConvProblem

Records = dict[str, CallRecord]
"""By direction."""
IN_LOADS = "the activation's gradient is taken in the loads"
WRITTEN = "channel_sums writes the activation's gradient"


def choose(
    loading: Records,
    decide: Callable[[ConvProblem, str, int], CallRecord],
    residual_strides: tuple[int, ...] | None,
    max_workspace: int,
) -> tuple[Records, bool]:
    """The records to run, each saying why, and whether the gradient is written first.

    A configuration that was measured runs as it was measured.

    Args:
        loading: kernels that load the gradient through the activation.
        decide: (problem, direction, workspace bytes) to the record of a kernel that reads the written gradient.
        residual_strides: of the residual's gradient, where it is wanted: it is the same tensor.
        max_workspace: bytes that the written gradient and the partial sums may take together.
    """
    problems = {direction: _problem(record) for direction, record in loading.items()}
    plain = {direction: written_problem(problem) for direction, problem in problems.items()}
    if plain == problems:
        return loading, False
    size = 0 if residual_strides else written_bytes(next(iter(problems.values())))
    why = why_in_loads(loading, residual_strides, size, max_workspace)
    if why:
        return _saying(loading, f"{IN_LOADS}: {why}"), False
    reading = {direction: decide(problem, direction, max_workspace - size) for direction, problem in plain.items()}
    if any(record.config is None for record in reading.values()):
        return _saying(loading, f"{IN_LOADS}: not all kernels may read a written gradient"), False
    return _saying(reading, WRITTEN), True


def why_in_loads(loading: Records, residual_strides: tuple[int, ...] | None, size: int, max_workspace: int) -> str:
    """Why the gradient, of `size` bytes besides the results, is not written; empty where it is."""
    if any(record.source == "measured" for record in loading.values()):
        return "so it was measured"
    if residual_strides and residual_strides[1] != 1:
        return "the residual's gradient, the same tensor, has its channels outermost"
    if size > max_workspace:
        return f"written it takes {size} bytes, more than the workspace's {max_workspace}"
    return ""


def written_bytes(problem: ConvProblem) -> int:
    """Bytes of the written gradient of a forward problem or of one of its gradients."""
    return math.prod(problem.output_shape) * problem.item_size


def _problem(record: CallRecord) -> ConvProblem:
    assert isinstance(record.problem, ConvProblem)
    return record.problem


def _saying(records: Records, why: str) -> Records:
    return {direction: replace(record, reason=f"{record.reason}; {why}") for direction, record in records.items()}
