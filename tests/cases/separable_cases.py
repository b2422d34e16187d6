"""Separable blocks and root modules for every lane: problems with their reasons, tensors, the truth, the allowance.

The truth is float64 throughout; the allowance is twice torch's own error when it computes the two convolutions one
after the other in the same dtype, plus one epsilon.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from case import Case
from conv_oracle import EPSILON, TF32_EPSILON, make_tensors, poisoned, reference, relative_error
from torch import Tensor

from grouped_conv.kernels import ConvProblem, Epilogue
from grouped_conv.kernels.interpreting.numerics import to_tf32
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.separable.forward import plan_separable_call
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, why_invalid
from grouped_conv.kernels.separable.problem import SeparableProblem

PLAIN = Epilogue()
RELU = Epilogue("relu", bias=True)
RELU6 = Epilogue("relu6", bias=True)
FULL = Epilogue("silu", bias=True, scale=True)
RESIDUAL = Epilogue("relu", bias=True, scale=True, residual=True)


def block(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    out_channels: int,
    epilogue: Epilogue = RELU,
    pointwise: Epilogue = PLAIN,
    **options: object,
) -> SeparableProblem:
    options = {"padding": weight[2] // 2, "groups": x[1] // weight[1], "precision": "ieee", **options}
    return SeparableProblem(ConvProblem.of(x, weight, epilogue=epilogue, **options), out_channels, pointwise)


# reason, problem
SHAPES: tuple[tuple[str, SeparableProblem], ...] = (
    ("MobileNetV2's first block", block((1, 32, 9, 8), (32, 1, 3, 3), 16, RELU6)),
    ("MobileNetV2, 96 to 24, stride 2", block((1, 96, 9, 9), (96, 1, 3, 3), 24, RELU6, stride=2)),
    ("144 channels: slices of 16 only", block((1, 144, 5, 6), (144, 1, 3, 3), 24, RELU6, RESIDUAL)),
    ("depthwise 5x5: a loop over taps", block((2, 40, 7, 6), (40, 1, 5, 5), 48, FULL)),
    ("odd depthwise channels", block((2, 21, 6, 5), (21, 1, 3, 3), 19, RELU, RELU)),
    ("one channel in all", block((1, 1, 3, 3), (1, 1, 3, 3), 1)),
    ("multiplier 2", block((1, 12, 6, 6), (24, 1, 3, 3), 20, RELU)),
    ("multiplier 3, an activation that moves zero", block((1, 10, 6, 6), (30, 1, 3, 3), 20, Epilogue("sigmoid"))),
    ("groups of 2", block((1, 40, 7, 7), (40, 2, 3, 3), 32, RELU)),
    ("groups of 4, ResNet-50's res2", block((1, 64, 7, 7), (64, 4, 3, 3), 256, RELU, RESIDUAL)),
    ("groups of 8 to 16", block((2, 32, 7, 5), (64, 8, 3, 3), 72, RELU, FULL)),
    ("groups of 3 to 5, a last pack that is not full", block((1, 33, 6, 6), (55, 3, 3, 3), 17, FULL, RESIDUAL)),
    ("groups of 6 to 6: packs of 24 in tiles of 32", block((1, 54, 5, 5), (54, 6, 3, 3), 40, RELU)),
    ("groups of 16", block((1, 64, 6, 6), (64, 16, 3, 3), 64, RELU, RELU)),
    ("groups of 32: one per slice", block((1, 64, 6, 6), (64, 32, 3, 3), 48, RELU)),
    ("groups of 48 to 80: parts of a group", block((1, 96, 6, 5), (160, 48, 3, 3), 40, FULL, RELU)),
    ("dense, odd channels", block((1, 27, 6, 6), (37, 27, 3, 3), 35, RELU)),
    ("NiN's conv2a in 8 groups, 5x5", block((1, 96, 6, 6), (96, 12, 5, 5), 64, RELU, RELU)),
    ("two pointwise convolutions", block((2, 24, 5, 7), (48, 8, 1, 1), 24, RELU, padding=0)),
    ("pads per side, strides and dilations that differ", block((1, 16, 12, 15), (32, 4, 3, 2), 24, RELU,
        stride=(2, 1), padding=(1, 0, 2, 3), dilation=(1, 3))),
    ("dilation reaches past the image", block((1, 16, 9, 9), (16, 1, 3, 3), 24, RELU, padding=4, dilation=4)),
    ("17 rows: comparisons in the loop", block((1, 6, 20, 9), (12, 3, 17, 2), 10, RELU, padding=(4, 4, 0, 0))),
    ("several images in one tile", block((5, 16, 3, 3), (16, 4, 3, 3), 16, RELU)),
)  # fmt: skip

CONFIGS = (
    SeparableConfig(block_m=32, block_n=16, width=16, block_k=16),
    SeparableConfig(block_m=64, block_n=32, width=32, block_k=32, num_stages=2),
    SeparableConfig(block_m=32, block_n=64, width=64, block_k=64, num_stages=3),
    SeparableConfig(block_m=64, block_n=32, width=16, method="direct"),
    SeparableConfig(block_m=32, block_n=16, width=32, method="direct"),
)


def shape_cases() -> Iterator[Case]:
    """Every shape in every method that can compute it; dtypes and memory formats rotate through them."""
    dtypes = itertools.cycle([("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")])
    formats = itertools.cycle([(True, True, True), (False, True, True), (True, False, False), (False, False, False)])
    for reason, problem in SHAPES:
        for config in CONFIGS:
            if why_invalid(problem, config) is not None:
                continue
            dtype, precision = next(dtypes)
            x_last, w_last, pointwise_last = next(formats)
            first = replace(
                problem.first,
                dtype=dtype,
                precision=precision,
                input_channels_last=x_last,
                weight_channels_last=w_last,
            )
            yield Case(reason, replace(problem, first=first, pointwise_channels_last=pointwise_last), config)
        next(dtypes)


def separable_tensors(problem: SeparableProblem, seed: int = 0) -> dict[str, Tensor]:
    """Every buffer of the problem by name: operands at random, the output poisoned."""
    tensors, second = make_tensors(problem.first, seed), make_tensors(problem.second, seed + 1)
    for name in ("weight", "bias", "scale"):
        if name in second:
            tensors[f"pointwise_{name}"] = second[name]
    if "residual" in second:
        tensors["residual"] = second["residual"]
    tensors["output"] = second["output"]
    return tensors


def two_steps(
    problem: SeparableProblem, tensors: Mapping[str, Tensor], dtype: torch.dtype, cut: bool = False
) -> Tensor:
    """What torch computes for the two convolutions, all steps in `dtype`; `cut` operands to TF32 first."""
    prepare: Callable[[Tensor], Tensor] = (
        (lambda tensor: torch.from_numpy(to_tf32(tensor.float().numpy()))) if cut else lambda tensor: tensor
    )
    first = {**tensors, "input": prepare(tensors["input"]), "weight": prepare(tensors["weight"])}
    second = {"input": prepare(reference(problem.first, first, dtype)), "weight": prepare(tensors["pointwise_weight"])}
    for name in ("bias", "scale"):
        if f"pointwise_{name}" in tensors:
            second[name] = tensors[f"pointwise_{name}"]
    if "residual" in tensors:
        second["residual"] = tensors["residual"]
    return reference(problem.second, second, dtype)


def check_separable(problem: SeparableProblem, tensors: Mapping[str, Tensor], what: str = "") -> float:
    """Assert that `tensors["output"]` is right; returns its error."""
    exact = two_steps(problem, tensors, torch.float64)
    tf32 = problem.first.precision == "tf32"
    theirs = two_steps(problem, tensors, getattr(torch, problem.dtype), tf32)
    allowed = 2 * relative_error(theirs, exact) + (TF32_EPSILON if tf32 else EPSILON[problem.dtype])
    error = relative_error(tensors["output"], exact)
    assert error <= allowed, f"{what or problem}: error {error:.3g} is more than {allowed:.3g}"
    return error


def run_separable(
    problem: SeparableProblem,
    config: Any,
    tensors: dict[str, Tensor],
    run: Callable[[Launch, Mapping[str, Tensor]], Any],
) -> list[Any]:
    """Run the problem's launches in order with `run`, temporaries poisoned; what each run returned."""
    launches, temporaries = plan_separable_call(problem, config)
    for temporary in temporaries:
        tensors[temporary.name] = poisoned(temporary.shape, temporary.dtype)
    return [run(launch, tensors) for launch in launches]
