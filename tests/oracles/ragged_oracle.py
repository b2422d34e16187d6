"""The truth about unequal groups: one `F.conv2d` per group on the channels it lists, in float64; tensors for a problem.

The rule for errors is `conv_oracle`'s. The gaps between the size buckets of the flat weight storage hold NaN, so that a
kernel which reads them shows.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from conv_oracle import EPSILON, TF32_EPSILON, activated, memory_format, poisoned, relative_error, scaled
from torch import Tensor

from grouped_conv.kernels import ConvProblem, GroupLayout, KernelConfig
from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.interpreting.numerics import to_tf32
from grouped_conv.kernels.ragged.forward_rules import bucket_offsets, weight_elements

Tensors = dict[str, Tensor]


def ragged_problem(
    layout: GroupLayout,
    size: tuple[int, int] = (6, 5),
    kernel: tuple[int, int] = (3, 3),
    batch: int = 1,
    **rest: object,
) -> ConvProblem:
    """A problem of an unequal layout; fp32 products are exact unless `precision` says otherwise."""
    return ConvProblem(batch, layout, size, kernel, **rest)  # type: ignore[arg-type]


def weight_of(problem: ConvProblem, flat: Tensor, group: int) -> Tensor:
    """The filters of one group, `(k, c, R, S)`, found by walking the buckets."""
    layout, (kernel_h, kernel_w) = problem.layout, problem.kernel_size
    for begin, bucket in zip(bucket_offsets(layout, problem.taps), layout.buckets, strict=True):
        if group in bucket.groups:
            size = bucket.outputs * problem.taps * bucket.inputs
            start = begin + bucket.groups.index(group) * size
            rows = flat[start : start + size].view(bucket.outputs, kernel_h, kernel_w, bucket.inputs)
            return rows.permute(0, 3, 1, 2)
    raise AssertionError(f"no bucket has group {group}")


def make_ragged_tensors(problem: ConvProblem, config: KernelConfig | None = None, seed: int = 0) -> Tensors:
    """Every buffer of the problem by name, its tables for `config` included."""
    generator = torch.Generator().manual_seed(seed)
    dtype, layout = getattr(torch, problem.dtype), problem.layout

    def random(*shape: int, channels_last: bool = False) -> Tensor:
        values = torch.randn(shape, generator=generator).to(dtype)
        return values.contiguous(memory_format=memory_format(channels_last)) if len(shape) == 4 else values

    flat = torch.full((weight_elements(layout, problem.taps),), float("nan"), dtype=dtype)
    for begin, bucket in zip(bucket_offsets(layout, problem.taps), layout.buckets, strict=True):
        count = bucket.connections * problem.taps
        flat[begin : begin + count] = random(count) / (problem.taps * bucket.inputs) ** 0.5
    epilogue = problem.epilogue
    tensors = {
        "input": random(*problem.input_shape, channels_last=problem.input_channels_last),
        "weight": flat,
        "output": poisoned(problem.output_shape, problem.dtype, problem.output_channels_last),
    }
    tensors |= {name: random(problem.out_channels) for name in ("bias", "scale") if getattr(epilogue, name)}
    if epilogue.residual:
        tensors["residual"] = random(*problem.output_shape, channels_last=problem.output_channels_last)
    if epilogue.save_preactivation:
        tensors["preactivation"] = torch.full_like(tensors["output"], float("nan"))
    if config is not None:
        arrays = family_of(config).tables(problem, config)
        tensors |= {name: torch.from_numpy(values) for name, values in arrays.items()}
    return tensors


def ragged_reference(
    problem: ConvProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64, *, cut: bool = False
) -> Tensor:
    """Group by group what torch computes, all steps in `dtype`; `cut` makes TF32 of the operands first."""
    operands = {name: tensors[name] for name in ("input", "weight")}
    if cut:
        operands = {name: torch.from_numpy(to_tf32(tensor.numpy())) for name, tensor in operands.items()}
    top, bottom, left, right = problem.padding
    x = F.pad(operands["input"].to(dtype), (left, right, top, bottom))
    parts = [
        F.conv2d(
            x[:, list(problem.layout.inputs_of(group))],
            weight_of(problem, operands["weight"], group).to(dtype),
            None,
            problem.stride,
            0,
            problem.dilation,
        )
        for group in range(problem.groups)
    ]
    return activated(problem.epilogue, scaled(problem.epilogue, tensors, torch.cat(parts, 1)))


def check_ragged(problem: ConvProblem, tensors: Mapping[str, Tensor], what: object = "") -> float:
    """Assert that the output, and the saved preactivation, are right; returns the output's error."""
    error = _check(problem, tensors, tensors["output"], what)
    if problem.epilogue.save_preactivation:
        plain = replace(problem, epilogue=replace(problem.epilogue, activation="none"))
        _check(plain, tensors, tensors["preactivation"], f"{what}: saved value")
    return error


def _check(problem: ConvProblem, tensors: Mapping[str, Tensor], y: Tensor, what: object) -> float:
    exact = ragged_reference(problem, tensors)
    tf32 = problem.precision == "tf32"
    theirs = ragged_reference(problem, tensors, getattr(torch, problem.dtype), cut=tf32)
    allowed = 2 * relative_error(theirs, exact) + (TF32_EPSILON if tf32 else EPSILON[problem.dtype])
    error = relative_error(y, exact)
    assert error <= allowed, f"{what or problem}: error {error:.3g} is more than {allowed:.3g}"
    return error


def by_group(input: Tensor, weights: list[Tensor], layout: GroupLayout, **window: object) -> Tensor:
    """One `conv2d` per group on the channels it lists."""
    parts = {}
    for bucket, weight in zip(layout.buckets, weights, strict=True):
        for group, rows in zip(bucket.groups, weight.split(bucket.outputs), strict=True):
            parts[group] = F.conv2d(input[:, list(layout.inputs_of(group))], rows, **window)  # type: ignore[arg-type]
    return torch.cat([parts[group] for group in range(layout.groups)], 1)
