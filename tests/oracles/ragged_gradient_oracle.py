"""The truth about gradients of unequal groups: autograd through one `F.conv2d` per group, in float64.

Tensors are made as for the forward kernel: the gaps of the flat weight storage hold NaN, results begin as NaN.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from conv_oracle import EPSILON, TF32_EPSILON, activated, poisoned, relative_error, run_call
from gradient_oracle import behind_activation, placed
from ragged_oracle import make_ragged_tensors, ragged_reference, weight_of
from torch import Tensor

from grouped_conv.kernels import ConvProblem, Epilogue
from grouped_conv.kernels.gradient_call import plan_gradient
from grouped_conv.kernels.interpreting.numerics import to_tf32
from grouped_conv.kernels.launching.gradient_operands import reads_preactivation
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.ragged.forward_rules import bucket_offsets
from grouped_conv.kernels.values.config import KernelConfig

Run = Callable[[Launch, Mapping[str, Tensor]], object]


def ragged_gradient_tensors(problem: ConvProblem, seed: int = 0) -> dict[str, Tensor]:
    """Operands, what forward saves, a gradient of the output, and poisoned results."""
    forward = replace(problem, direction="forward", input_channels_last=True)
    tensors = make_ragged_tensors(forward, None, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    grad = torch.randn(problem.output_shape, generator=generator).to(tensors["input"].dtype)
    tensors["grad_output"] = grad.contiguous(memory_format=torch.channels_last)
    plain = replace(forward, epilogue=Epilogue(scale=problem.epilogue.scale))
    known = ragged_reference(plain, tensors, torch.float32)
    if not reads_preactivation(problem.epilogue):
        known = activated(problem.epilogue, known)
    tensors["known"] = known.to(grad.dtype).contiguous(memory_format=torch.channels_last)
    tensors["grad_input"] = poisoned(problem.input_shape, problem.dtype, True)
    tensors["grad_weight"] = torch.full_like(tensors["weight"], float("nan"))
    tensors["grad_scale"] = poisoned((problem.out_channels,), problem.dtype)
    return tensors


def ragged_gradients(
    problem: ConvProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """The gradients of input, flat weight (zeros in its gaps) and scale, all steps in `dtype`."""
    inner = behind_activation(problem, tensors, dtype)
    top, bottom, left, right = problem.padding
    x = tensors["input"].to(dtype).requires_grad_()
    flat = tensors["weight"].to(dtype).nan_to_num(0.0).requires_grad_()
    padded = F.pad(x, (left, right, top, bottom))
    parts = [
        F.conv2d(
            padded[:, list(problem.layout.inputs_of(group))],
            weight_of(problem, flat, group),
            None,
            problem.stride,
            0,
            problem.dilation,
        )
        for group in range(problem.groups)
    ]
    y, operands = torch.cat(parts, 1), {"input": x, "weight": flat}
    if problem.epilogue.scale:
        operands["scale"] = tensors["scale"].to(dtype).requires_grad_()
        y = y * operands["scale"][:, None, None]
    return dict(zip(operands, torch.autograd.grad(y, list(operands.values()), inner), strict=True))


def _pieces(problem: ConvProblem, name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The gradient by its parts: every size bucket of the weight is held to its own allowance."""
    if name != "weight":
        yield name, value
        return
    for bucket, begin in zip(problem.layout.buckets, bucket_offsets(problem.layout, problem.taps), strict=True):
        yield f"weight of {bucket}", value[begin : begin + bucket.connections * problem.taps]


def check_ragged_gradient(problem: ConvProblem, tensors: Mapping[str, Tensor], name: str, what: object = "") -> None:
    """Assert that `tensors["grad_" + name]` is right, each bucket of a weight for itself, and zero in the gaps.

    A bucket may hold so few values that all of them are small sums of large terms. Then the order of summation, which
    differs between CPUs, decides the error: in fp32 epsilon is relative to the largest sum of magnitudes.
    """
    ours, exact = tensors[f"grad_{name}"], ragged_gradients(problem, tensors)[name]
    sums = exact
    if problem.dtype == "float32" and problem.epilogue.activation == "none":
        sums = ragged_gradients(problem, {key: tensor.abs() for key, tensor in tensors.items()})[name]
    if problem.precision == "tf32":
        cut = {n: torch.from_numpy(to_tf32(tensors[n].contiguous().numpy())) for n in ("input", "weight")}
        theirs, epsilon = ragged_gradients(problem, {**tensors, **cut}, torch.float32)[name], 2 * TF32_EPSILON
    else:
        theirs = ragged_gradients(problem, tensors, getattr(torch, problem.dtype))[name]
        epsilon = EPSILON[problem.dtype]
    assert not ours.isnan().any(), f"{what or problem}: {int(ours.isnan().sum())} values of {name} were not written"
    pieces = [list(_pieces(problem, name, value)) for value in (ours, exact, theirs, sums)]
    for (part, mine), (_, truth), (_, other), (_, total) in zip(*pieces, strict=True):
        largest = float(truth.abs().max()) if truth.numel() else 0.0
        scale = float(total.abs().max()) / largest if largest else 1.0
        error, allowed = relative_error(mine, truth), 2 * relative_error(other, truth) + epsilon * scale
        assert error <= allowed, f"{what or problem}: gradient of {part} has error {error:.3g}, more than {allowed:.3g}"
    if name == "weight":
        gaps = tensors["weight"].isnan()
        assert not ours[gaps].any(), f"{what or problem}: the gaps between buckets are not zero"


def run_ragged_gradient(
    problem: ConvProblem, config: KernelConfig, tensors: dict[str, Tensor], run: Run, **wanted: Any
) -> list[Any]:
    """Run the launches of the gradient that `config` computes; what each run returned."""
    call = plan_gradient(problem, config, placed(tensors), **wanted)
    tensors |= {name: torch.from_numpy(values) for name, values in call.tables.items()}
    return run_call(call, tensors, run)
