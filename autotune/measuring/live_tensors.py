"""Tensors of one problem: operands at random, outputs full of NaN.

Only the measuring process imports this: it needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from grouped_conv.autotune.measuring.live_truth import known
from grouped_conv.kernels.ragged.forward_rules import bucket_offsets, weight_elements
from grouped_conv.kernels.values.problem import ConvProblem

Tensors = dict[str, Tensor]
OUTPUT = {"forward": "output", "input_grad": "grad_input", "weight_grad": "grad_weight"}
"""The buffer that holds a direction's result."""


def make_operands(problem: ConvProblem, seed: int, device: torch.device) -> Tensors:
    """What the problem reads, from a normal distribution, the weight scaled so that outputs are of order one.

    Gaps of a flat weight storage hold NaN, so that a kernel which reads them shows.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, problem.dtype)
    backward = problem.direction != "forward"

    def random(shape: Iterable[int], last: bool = False, scale: float = 1.0) -> Tensor:
        values = (torch.randn(tuple(shape), generator=generator) * scale).to(device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last) if last and values.dim() == 4 else values

    tensors = {"input": random(problem.input_shape, problem.input_channels_last or backward)}
    if problem.layout.is_uniform:
        depth = problem.taps * problem.c_per_group
        tensors["weight"] = random(problem.weight_shape, problem.weight_channels_last, depth**-0.5)
    else:
        flat = torch.full((weight_elements(problem.layout, problem.taps),), float("nan"), dtype=dtype, device=device)
        for begin, bucket in zip(bucket_offsets(problem.layout, problem.taps), problem.layout.buckets, strict=True):
            count = bucket.connections * problem.taps
            flat[begin : begin + count] = random((count,), scale=(problem.taps * bucket.inputs) ** -0.5)
        tensors["weight"] = flat
    for name in ("bias", "scale"):
        if getattr(problem.epilogue, name):
            tensors[name] = random((problem.out_channels,))
    if problem.epilogue.residual:
        tensors["residual"] = random(problem.output_shape, problem.output_channels_last)
    if backward:
        tensors["grad_output"] = random(problem.output_shape, True)
        tensors["known"] = known(problem, tensors).to(dtype).contiguous(memory_format=torch.channels_last)
    return tensors


def poisoned_outputs(problem: ConvProblem, device: torch.device) -> Tensors:
    """The buffers that the problem writes, full of NaN: whatever is not written shows."""
    dtype = getattr(torch, problem.dtype)

    def full(shape: Iterable[int], last: bool = False) -> Tensor:
        values = torch.full(tuple(shape), float("nan"), dtype=dtype, device=device)
        return values.contiguous(memory_format=torch.channels_last) if last and values.dim() == 4 else values

    if problem.direction == "input_grad":
        return {"grad_input": full(problem.input_shape, True)}
    if problem.direction == "weight_grad":
        if problem.layout.is_uniform:
            return {"grad_weight": full(problem.weight_shape, problem.weight_channels_last)}
        return {"grad_weight": full((weight_elements(problem.layout, problem.taps),))}
    outputs = {"output": full(problem.output_shape, problem.output_channels_last)}
    if problem.epilogue.save_preactivation:
        outputs["preactivation"] = torch.clone(outputs["output"])
    return outputs
