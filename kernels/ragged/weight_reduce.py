"""Second pass of the ragged weight gradient: add the splits' parts in a fixed order, for one flat weight storage.

As `gradient_reduce`, but a program has one output channel, whose weights it finds in a table. Between size buckets the
flat storage has gaps; the last channel before a gap writes zeros there.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.passes.configs import RaggedWeightReduceConfig
from grouped_conv.kernels.passes.gradient_reduce import TILE
from grouped_conv.kernels.ragged.forward_rules import MAX_ALIGN, traits, weight_elements
from grouped_conv.kernels.ragged.weight_grad_rules import REDUCE_ROW
from grouped_conv.kernels.values.problem import ConvProblem

_ROW = tl.constexpr(REDUCE_ROW)
_GAP = tl.constexpr(MAX_ALIGN)


@triton.jit
def ragged_weight_reduce(
    workspace_ptr, table_ptr, scale_ptr, w_ptr, dw_ptr, dscale_ptr, part, splits,
    WIDTH_ALIGN: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0)
    row_ptr = table_ptr + channel * _ROW
    begin = tl.multiple_of(tl.load(row_ptr), WIDTH_ALIGN)
    depth = tl.multiple_of(tl.load(row_ptr + 1).to(tl.int32), WIDTH_ALIGN)
    gap = tl.load(row_ptr + 2).to(tl.int32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for first in tl.range(0, depth, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        mask = column < depth
        acc = tl.zeros((BLOCK_N,), tl.float32)
        for split in tl.range(splits):
            sums = workspace_ptr + (tl.cast(split, tl.int64) * part + begin)
            acc += tl.load(sums + column, mask=mask, other=0.0)
        if dscale_ptr is not None:
            total += acc * tl.load(w_ptr + begin + column, mask=mask, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            acc = acc * tl.load(scale_ptr + channel).to(tl.float32)
        tl.store(dw_ptr + begin + column, acc.to(dw_ptr.dtype.element_ty), mask=mask)
    if dscale_ptr is not None:
        tl.store(dscale_ptr + channel, tl.sum(total, axis=0).to(dscale_ptr.dtype.element_ty))
    after = tl.arange(0, _GAP)
    zeros = tl.zeros((_GAP,), dw_ptr.dtype.element_ty)
    tl.store(dw_ptr + (begin + depth) + after, zeros, mask=after < gap)


def plan_ragged_weight_reduce(
    problem: ConvProblem, splits: int, operands: Mapping[str, Operand], grad_scale: bool
) -> Launch:
    """The launch that turns `workspace`, `[splits, weight_elements]` in fp32, into the flat `grad_weight`.

    Args:
        grad_scale: also write the gradient of the scale, which the problem then has.

    Raises:
        ValueError: if `grad_scale` is true and the problem has no scale.
    """
    layout, taps = problem.layout, problem.taps
    if grad_scale and not problem.epilogue.scale:
        raise ValueError(f"{problem} has no scale whose gradient could be computed")
    deepest = taps * max(bucket.inputs for bucket in layout.buckets)
    config = RaggedWeightReduceConfig(block=min(TILE, max(128, triton.next_power_of_2(deepest))))
    wanted = {
        "scale_ptr": ("scale", problem.epilogue.scale),
        "w_ptr": ("weight", grad_scale),
        "dw_ptr": ("grad_weight", True),
        "dscale_ptr": ("grad_scale", grad_scale),
    }
    buffers = [Buffer("workspace_ptr", "workspace", "float32"), Buffer("table_ptr", "weight_rows", "int64")]
    constants: dict[str, object] = {"WIDTH_ALIGN": traits(layout).width_align, "BLOCK_N": config.block}
    for parameter, (name, present) in wanted.items():
        if present:
            operand = operands[name]
            buffers.append(Buffer(parameter, operand.buffer, problem.dtype, operand.alignment))
        else:
            constants[parameter] = None
    integers = (
        Integer.of("part", weight_elements(layout, taps), wide=True, stride=True),
        Integer.of("splits", splits),
    )
    return Launch(ragged_weight_reduce, config, (layout.out_channels, 1, 1), tuple(buffers), integers, constants)
