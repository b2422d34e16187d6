"""Gate of the LRN + pool kernel: AlexNet's two layers at their defaults, the first in the other orders too.

The figure counts what a thread executes per pooled value: one trip of the loop per input row, and in it what finishes a
pooled row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from grouped_conv.autotune.machine_code.instructions import Instruction
from grouped_conv.autotune.model.lrn_pool.forward import choose
from grouped_conv.bench.gates.engine import Compiled, Gate
from grouped_conv.bench.gates.findings import VECTOR_BYTES
from grouped_conv.bench.gates.rules import wide_loads, wide_stores
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides
from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.epilogue import Epilogue

LIMIT = 136.0
"""Instructions per pooled value: the prototype of one output pixel per thread had 135."""
ORDERS = ("relu-lrn-pool", "lrn-relu-pool", "pool-lrn")
NEIGHBOURS = "loads narrower than 16 bytes are the neighbouring channels of a vector, which hit L1"
_PAPER: dict[str, Any] = {"dtype": "float16", "alpha": 5e-4, "k": 2.0, "groups": 2, "ceil_mode": True}
LAYERS = {
    "norm1+pool1": LrnPoolProblem.of((128, 96, 55, 55), **_PAPER),
    "norm2+pool2": LrnPoolProblem.of((128, 256, 27, 27), **_PAPER),
}
"""AlexNet's two normalised and pooled layers in the paper's version, two towers."""


def launches(problem: LrnPoolProblem, config: LrnPoolConfig) -> Sequence[Launch]:
    """The one launch, on channels_last tensors."""
    shapes = {"input": problem.input_shape, "output": problem.output_shape}
    return [
        plan_lrn_pool(problem, config, {name: Operand(channels_last_strides(shape)) for name, shape in shapes.items()})
    ]


def per_pooled_value(compiled: Compiled) -> float:
    """Executed instructions per pooled value of a thread."""
    problem, config = compiled.problem, compiled.config
    strips = config.block // compiled.threads
    outputs = config.rows * config.strip * (VECTOR_BYTES // problem.item_size) * strips
    return executed_instructions(compiled.code, problem, config) / outputs


def executed_instructions(code: Sequence[Instruction], problem: LrnPoolProblem, config: LrnPoolConfig) -> int:
    """Instructions that one warp executes: one trip of the loop per input row, and in it what finishes a pooled row."""
    loop = max(_spans(code, backward=True), key=len, default=[])
    finish = max(_spans(loop, backward=False), key=len, default=[])
    kernel, stride = problem.kernel_size[0], problem.stride[0]
    trips = config.rows * min(stride, kernel) + max(kernel - stride, 0)
    return len(code) - len(loop) + trips * (len(loop) - len(finish)) + config.rows * len(finish)


def _spans(code: Sequence[Instruction], *, backward: bool) -> Iterator[list[Instruction]]:
    """The instructions between each branch in `code` and its target, where that is in `code` too."""
    addresses = {instruction.address for instruction in code}
    for branch in code:
        if branch.target is None or (branch.target < branch.address) != backward:
            continue
        low, high = sorted((branch.target, branch.address))
        if backward or any(address >= high for address in addresses):
            yield [i for i in code if low <= i.address <= high and (backward or i.address not in (low, high))]


def some_wide_loads(compiled: Compiled) -> Iterator[str]:
    """A vector's own channels are loaded 16 bytes at a time."""
    loads = compiled.resources.total.load_widths
    if VECTOR_BYTES not in loads:
        yield f"loads by width in bytes: {dict(loads)}"


def varied(problem: LrnPoolProblem, dtype: str, epilogue: Epilogue) -> LrnPoolProblem:
    """The same layer with another dtype; it has no epilogue."""
    return replace(problem, dtype=dtype)


GATES = (
    Gate(
        family="lrn_pool",
        unit="pooled value",
        layers=LAYERS | {order: replace(LAYERS["norm1+pool1"], order=order) for order in ORDERS},
        choose=choose,
        limit=lambda layer, problem, config, device: LIMIT,
        launches=launches,
        count=per_pooled_value,
        rules=(some_wide_loads, wide_stores),
        wide=(wide_loads,),
        exemption=lambda compiled: NEIGHBOURS,
        varied=varied,
    ),
)
