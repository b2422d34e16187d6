"""The truth the kernel tests hold results against: tensors for a problem, float64 references, what error is allowed.

The rule: with `err = max|y - ref64| / max|ref64|`, our error is at most twice torch's own in the same dtype plus one
machine epsilon. TF32 is held to torch's fp32 convolution of operands cut to TF32 and TF32's epsilon.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import grouped_conv
from grouped_conv.kernels import ConvProblem, Epilogue
from grouped_conv.kernels.interpreting.numerics import to_tf32
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.launching.launch import Launch

EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}
TF32_EPSILON = 2.0**-10

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def poisoned(shape: Iterable[int], dtype: str, channels_last: bool = False) -> Tensor:
    """A tensor of NaN (of -1, as a table an offset before the buffer with all bits set): what is not written shows."""
    kind = getattr(torch, dtype)
    full = torch.full(tuple(shape), float("nan") if kind.is_floating_point else -1, dtype=kind)
    return full.contiguous(memory_format=memory_format(channels_last)) if full.dim() == 4 else full


def make_tensors(problem: ConvProblem, seed: int = 0, weight_scale: float = 1.0) -> dict[str, Tensor]:
    """Every buffer of the problem by name: operands at random, outputs poisoned."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, problem.dtype)

    def random(shape: Iterable[int], channels_last: bool) -> Tensor:
        values = torch.randn(tuple(shape), generator=generator).to(dtype)
        return values.contiguous(memory_format=memory_format(channels_last)) if values.dim() == 4 else values

    depth = max(1, problem.taps * problem.c_per_group)
    tensors = {
        "input": random(problem.input_shape, problem.input_channels_last),
        "weight": random(problem.weight_shape, problem.weight_channels_last) * (weight_scale / depth**0.5),
        "output": poisoned(problem.output_shape, problem.dtype, problem.output_channels_last),
    }
    epilogue = problem.epilogue
    for name in ("bias", "scale"):
        if getattr(epilogue, name):
            tensors[name] = random((problem.out_channels,), False)
    if epilogue.residual:
        tensors["residual"] = random(problem.output_shape, problem.output_channels_last)
    if epilogue.save_preactivation:
        tensors["preactivation"] = torch.full_like(tensors["output"], float("nan"))
    return tensors


def convolved(x: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
    """`F.conv2d` without padding. Rows of taps in 16 bits are turned on their side: from depthwise convolutions with
    1x15 and 1x31 taps in fp16 and bf16 torch 2.13's oneDNN never comes back on CPUs with AMX.
    """
    if x.element_size() == 2 and problem.kernel_size[0] == 1:
        return F.conv2d(x.mT, weight.mT, None, problem.stride[::-1], 0, problem.dilation[::-1], problem.groups).mT
    return F.conv2d(x, weight, None, problem.stride, 0, problem.dilation, problem.groups)


def reference(problem: ConvProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """What torch computes for the problem, all steps in `dtype`; TF32 operands are cut first."""
    x, weight = tensors["input"].to(dtype), tensors["weight"].to(dtype)
    x = shuffled(x, problem.input_shuffle)
    top, bottom, left, right = problem.padding
    padded = F.pad(x, (left, right, top, bottom))
    y = convolved(padded, weight, problem)
    return shuffled(activated(problem.epilogue, scaled(problem.epilogue, tensors, y)), problem.epilogue.shuffle)


def scaled(epilogue: Epilogue, tensors: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """The sums with the epilogue's scale, bias and residual: the activation's argument."""
    if epilogue.scale:
        y = y * tensors["scale"].to(y.dtype)[:, None, None]
    if epilogue.bias:
        y = y + tensors["bias"].to(y.dtype)[:, None, None]
    return y + tensors["residual"].to(y.dtype) if epilogue.residual else y


def activated(epilogue: Epilogue, value: Tensor) -> Tensor:
    if epilogue.activation == "leaky_relu":
        return F.leaky_relu(value, epilogue.negative_slope)
    return ACTIVATE[epilogue.activation](value)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channel shuffle by an explicit table: channel i * run + j goes to j * groups + i."""
    channels = x.shape[1]
    run = channels // groups
    source = [(c % groups) * run + c // groups for c in range(channels)]
    return x[:, source]


def relative_error(y: Tensor, exact: Tensor) -> float:
    """max|y - exact| / max|exact|; places where both are the same NaN or infinity count as equal."""
    y = y.double()
    finite = exact.isfinite()
    if not torch.equal(y[~finite].nan_to_num(7.0), exact[~finite].nan_to_num(7.0)):
        return float("inf")
    if not finite.any():
        return 0.0
    peak = exact[finite].abs().max().item()
    worst = (y[finite] - exact[finite]).abs().max().item()
    return worst / peak if peak else worst


def allowance(problem: ConvProblem, tensors: Mapping[str, Tensor], exact: Tensor) -> float:
    """The error that is allowed: 2 x torch's own in the same dtype + epsilon."""
    if problem.precision == "tf32":
        cut = {name: torch.from_numpy(to_tf32(tensors[name].numpy())) for name in ("input", "weight")}
        theirs = reference(problem, {**tensors, **cut}, torch.float32)
        return 2 * relative_error(theirs, exact) + TF32_EPSILON
    theirs = reference(problem, tensors, getattr(torch, problem.dtype))
    return 2 * relative_error(theirs, exact) + EPSILON[problem.dtype]


def check_output(problem: ConvProblem, tensors: Mapping[str, Tensor], what: str = "") -> float:
    """Assert that `tensors["output"]` is right; returns its error."""
    exact = reference(problem, tensors)
    error, allowed = relative_error(tensors["output"], exact), allowance(problem, tensors, exact)
    assert error <= allowed, f"{what or problem}: error {error:.3g} is more than {allowed:.3g}"
    if problem.epilogue.save_preactivation:
        plain = ConvProblem.from_json(problem.to_json() | {"epilogue": plain_epilogue(problem)})
        before = reference(plain, tensors)
        assert relative_error(tensors["preactivation"], before) <= allowance(plain, tensors, before), (
            f"{what}: saved value"
        )
    return error


def plain_epilogue(problem: ConvProblem) -> dict[str, object]:
    return problem.epilogue.to_json() | {"activation": "none", "shuffle": 1}


def run_call(
    call: Call, tensors: dict[str, Tensor], run: Callable[[Launch, Mapping[str, Tensor]], object]
) -> list[object]:
    """Run a call's launches in order with `run`, temporaries poisoned; what each run returned."""
    for temporary in call.temporaries:
        tensors[temporary.name] = poisoned(temporary.shape, temporary.dtype)
    return [run(launch, tensors) for launch in call.launches]


def convolve(problem: ConvProblem, tensors: dict[str, Tensor]) -> Tensor:
    """The problem as one call of the public function."""
    epilogue = problem.epilogue
    return grouped_conv.grouped_conv2d(
        tensors["input"],
        tensors["weight"],
        tensors.get("bias"),
        problem.stride,
        problem.padding,
        problem.dilation,
        problem.groups,
        activation=epilogue.activation,
        negative_slope=epilogue.negative_slope,
        scale=tensors.get("scale"),
        residual=tensors.get("residual"),
        precision=problem.precision if problem.dtype == "float32" else None,
        input_shuffle=problem.input_shuffle,
        output_shuffle=epilogue.shuffle,
    )
