"""The truth that gradient kernels are held against: every gradient of a problem in float64, and what error is allowed.

Our error of a gradient is at most twice torch's own in the same dtype plus one machine epsilon, by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from conv_oracle import (
    EPSILON,
    TF32_EPSILON,
    activated,
    convolved,
    make_tensors,
    poisoned,
    relative_error,
    run_call,
    scaled,
    shuffled,
)
from torch import Tensor

from grouped_conv.kernels import ConvProblem
from grouped_conv.kernels.gradient_call import gradient_problem, plan_bias_gradient, plan_gradient, written_problem
from grouped_conv.kernels.interpreting.numerics import to_tf32
from grouped_conv.kernels.launching.gradient_operands import reads_preactivation
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.values.config import KernelConfig

Run = Callable[[Launch, Mapping[str, Tensor]], object]
NAMES = ("input", "weight", "bias", "scale", "residual")


def gradient_tensors(problem: ConvProblem, seed: int = 0) -> dict[str, Tensor]:
    """Operands of the forward problem, what forward saves, a gradient of the output, and poisoned results.

    Activations lie channels_last, as the gradient kernels read them.
    """
    forward = replace(problem, direction="forward", input_channels_last=True)
    tensors = make_tensors(forward, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    grad = torch.randn(problem.output_shape, generator=generator).to(tensors["input"].dtype)
    tensors["grad_output"] = grad.contiguous(memory_format=torch.channels_last)
    preactivation = forward_in(forward, tensors, torch.float32)
    known = preactivation
    if not reads_preactivation(forward.epilogue):
        known = shuffled(activated(forward.epilogue, preactivation), forward.epilogue.shuffle)
    tensors["known"] = known.to(grad.dtype).contiguous(memory_format=torch.channels_last)
    shapes = {"input": problem.input_shape, "weight": problem.weight_shape, "residual": problem.output_shape}
    for name in NAMES:
        shape = shapes.get(name, (problem.out_channels,))
        last = problem.weight_channels_last if name == "weight" else True
        tensors[f"grad_{name}"] = poisoned(shape, problem.dtype, last)
    return tensors


def forward_in(problem: ConvProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The activation's argument of the forward problem, in `dtype`."""
    top, bottom, left, right = problem.padding
    x = shuffled(tensors["input"].to(dtype), problem.input_shuffle)
    y = convolved(F.pad(x, (left, right, top, bottom)), tensors["weight"].to(dtype), problem)
    return scaled(problem.epilogue, tensors, y)


def behind_activation(problem: ConvProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The gradient of the activation's argument, in the convolution's channel order, from what forward saved."""
    epilogue = problem.epilogue
    grad, known = tensors["grad_output"].to(dtype), tensors["known"].to(dtype)
    back = problem.out_channels // epilogue.shuffle
    grad = shuffled(grad, back)
    if epilogue.activation == "none":
        return grad
    if reads_preactivation(epilogue):
        known = known.detach().requires_grad_()
        (result,) = torch.autograd.grad(activated(epilogue, known), known, grad)
        return result
    known = shuffled(known, back)
    slopes = {
        "relu": lambda: (known > 0).to(dtype),
        "relu6": lambda: ((known > 0) & (known < 6)).to(dtype),
        "leaky_relu": lambda: torch.where(known > 0, 1.0, epilogue.negative_slope).to(dtype),
        "sigmoid": lambda: known * (1 - known),
        "tanh": lambda: 1 - known * known,
    }
    return grad * slopes[epilogue.activation]()


def gradients(
    problem: ConvProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Every gradient of the problem, all steps in `dtype`."""
    inner = behind_activation(problem, tensors, dtype)
    top, bottom, left, right = problem.padding
    x = tensors["input"].to(dtype).detach().requires_grad_()
    weight = tensors["weight"].to(dtype).detach().requires_grad_()
    operands = {"input": x, "weight": weight}
    padded = F.pad(shuffled(x, problem.input_shuffle), (left, right, top, bottom))
    y = convolved(padded, weight, problem)
    if problem.epilogue.scale:
        operands["scale"] = tensors["scale"].to(dtype).detach().requires_grad_()
        y = y * operands["scale"][:, None, None]
    found = dict(zip(operands, torch.autograd.grad(y, list(operands.values()), inner), strict=True))
    return found | {"bias": inner.sum((0, 2, 3)), "residual": inner}


def check_gradient(problem: ConvProblem, tensors: Mapping[str, Tensor], name: str, what: str = "") -> float:
    """Assert that `tensors["grad_" + name]` is right; returns its error."""
    exact = gradients(problem, tensors)[name]
    if problem.precision == "tf32" and name in ("input", "weight", "scale"):
        cut = {n: torch.from_numpy(to_tf32(tensors[n].contiguous().numpy())) for n in ("input", "weight")}
        theirs, epsilon = gradients(problem, {**tensors, **cut}, torch.float32)[name], 2 * TF32_EPSILON
    else:
        theirs = gradients(problem, tensors, getattr(torch, problem.dtype))[name]
        epsilon = EPSILON[problem.dtype]
    error, allowed = relative_error(tensors[f"grad_{name}"], exact), 2 * relative_error(theirs, exact) + epsilon
    assert error <= allowed, f"{what or problem}: gradient of {name} has error {error:.3g}, more than {allowed:.3g}"
    return error


def placed(tensors: Mapping[str, Tensor]) -> dict[str, Operand]:
    """The tensors as they lie in memory."""
    return {name: Operand(t.stride() if t.dim() == 4 else (1, 1, 1, 1)) for name, t in tensors.items()}  # type: ignore[arg-type]


def run_gradient(
    problem: ConvProblem, config: KernelConfig, tensors: dict[str, Tensor], run: Run, **wanted: Any
) -> list[Any]:
    """Run the launches of the gradient that `config` computes; what each run returned."""
    return run_call(plan_gradient(problem, config, placed(tensors), **wanted), tensors, run)


def run_written_gradient(
    problem: ConvProblem, config: KernelConfig, tensors: dict[str, Tensor], run: Run, **wanted: Any
) -> list[Any]:
    """The same behind the pass that writes the activation's gradient, which is the residual's."""
    runs = run_bias_gradient(problem, tensors, run, grad_residual=True)
    behind = tensors | {"grad_output": tensors["grad_residual"]}
    return runs + run_gradient(written_problem(problem), config, behind, run, **wanted)


def run_bias_gradient(problem: ConvProblem, tensors: dict[str, Tensor], run: Run, **wanted: Any) -> list[Any]:
    """Run the launches that sum the gradient per channel."""
    return run_call(
        plan_bias_gradient(gradient_problem(problem, "weight_grad"), placed(tensors), **wanted), tensors, run
    )
