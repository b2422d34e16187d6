"""Problems and configurations for the gradients of thin groups, on every lane; each has the reason it is there."""

from __future__ import annotations

import itertools
from dataclasses import replace

from case import Case
from packed_cases import SHAPES, thin

from grouped_conv.kernels import ConvProblem, Epilogue
from grouped_conv.kernels.families import family_of
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed.weight_grad_rules import PackedWeightGradConfig
from grouped_conv.kernels.values.config import KernelConfig

ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid", "tanh")
DTYPES = (("float16", "tf32"), ("bfloat16", "tf32"), ("float32", "tf32"), ("float32", "ieee"))
WEIGHT = (
    PackedWeightGradConfig(pack=4, strip=2, splits=2),
    PackedWeightGradConfig(pack=3, strip=1, rows=1, splits=3, block_k=16),
    PackedWeightGradConfig(pack=8, strip=4, rows=2, block_k=16),
)
"""Full and part packs, all kernel rows or some (which need not divide the kernel), strips that hang over the row."""
INPUT = (
    PackedInputGradConfig(pack=4, strip=2, block_m=16, tiles_per_program=2),
    PackedInputGradConfig(pack=3, strip=1, block_m=32, tiles_per_program=1, rows_ahead=0),
    PackedInputGradConfig(pack=2, strip=4, block_m=16, tiles_per_program=3, rows_ahead=2),
)
IMPLICIT = (
    InputGradConfig(pack=4, block_m=16, block_n=16, block_k=32),
    InputGradConfig(pack=3, block_m=32, block_n=16, block_k=16, num_stages=2),
    InputGradConfig(pack=4, block_m=16, block_n=32, block_k=16),
)


def fitted(problem: ConvProblem, config: KernelConfig) -> KernelConfig | None:
    """The configuration with a smaller pack and fewer splits where the problem asks for it; None if that is no help."""
    family = family_of(config)
    problem = gradient_problem(problem, family.direction)
    while family.why_invalid(problem, config) is not None:
        if getattr(config, "splits", 1) > 1:
            config = replace(config, splits=1)
        elif config.pack > 1:
            config = replace(config, pack=config.pack // 2)
        else:
            return None
    return config


def _cases(rows, configs, every: bool = False) -> list[Case]:
    """Each row with the configurations of one direction in turn, or with all of them; the dtypes in turn."""
    dtypes, turns = itertools.cycle(DTYPES), itertools.cycle(configs)
    cases = []
    for reason, plain in rows:
        for config in configs if every else [next(turns)]:
            dtype, precision = next(dtypes)
            problem = replace(plain, dtype=dtype, precision=precision)
            chosen = fitted(problem, config)
            if chosen is not None:
                problem = gradient_problem(problem, family_of(chosen).direction)
                cases.append(Case(reason, problem, chosen))
    return cases


def shape_cases(every: bool = False) -> list[Case]:
    """The shapes, in one direction each or in both with every configuration; the weight in either memory format."""
    layouts = itertools.cycle((True, False))
    rows = [(reason, replace(plain, weight_channels_last=next(layouts))) for reason, plain in SHAPES]
    if every:
        return [*_cases(rows, WEIGHT, True), *_cases(rows, INPUT, True)]
    return [
        *_cases(rows[::2], WEIGHT),
        *_cases(rows[1::2], INPUT),
        *_cases(rows[:4], INPUT),
        *_cases(rows[4:9], WEIGHT),
    ]


def shuffle_cases() -> list[Case]:
    """Shuffles that keep runs of channels together and shuffles that do not, of input and output."""
    rows = []
    for before, after in ((1, 8), (4, 1), (2, 2), (8, 4), (16, 16)):
        epilogue = Epilogue("relu" if after > 2 else "silu", shuffle=after)
        rows.append(
            (f"shuffles {before}-{after}", thin(4, 4, 8, (5, 6), padding=1, input_shuffle=before, epilogue=epilogue))
        )
    odd = thin(6, 3, 5, (5, 5), padding=1, stride=2, input_shuffle=3, epilogue=Epilogue("gelu", shuffle=5))
    rows.append(("shuffles of odd groups", odd))
    return [*_cases(rows, WEIGHT), *_cases(rows, INPUT)]


def activation_cases(every: bool = False) -> list[Case]:
    """Activations, with a scale in every second case; all of them in both directions, or each in one of them."""
    rows = [
        (f"{activation}{' and a scale' if scaled else ''}", thin(
            4, 8, 3, (5, 6), padding=1, stride=(1, 2), epilogue=Epilogue(activation, scale=scaled, negative_slope=-0.1)
            if activation == "leaky_relu" else Epilogue(activation, scale=scaled)))
        for activation, scaled in zip(ACTIVATIONS, itertools.cycle((True, False)), strict=False)
    ]  # fmt: skip
    if every:
        return [*_cases(rows, WEIGHT, True), *_cases(rows, INPUT, True)]
    return [*_cases(rows[::2], WEIGHT), *_cases(rows[1::2], INPUT), *_cases(rows[:3:2], INPUT[::-1])]


def packed_input_grad_cases() -> list[Case]:
    """The implicit input gradient with packs: partial last packs, strides, unequal channels, shuffles."""
    rows = [
        ("even packs", thin(4, 4, 8, (6, 7), padding=1, batch=2)),
        ("the last pack is one group", thin(4, 4, 9, (6, 6), padding=1)),
        ("more inputs than outputs", thin(8, 4, 4, (6, 5), padding=1, stride=2)),
        ("more outputs than inputs", thin(2, 6, 5, (6, 8), padding=1, stride=2)),
        ("three channels", thin(3, 3, 7, (7, 6), padding=1)),
        ("ShuffleNet 1x1", thin(5, 15, 4, (6, 5), (1, 1), epilogue=Epilogue("relu", shuffle=4))),
        ("stride beyond the kernel", thin(4, 4, 4, (9, 11), (2, 2), stride=3)),
        ("input shuffled", thin(4, 4, 4, (6, 5), padding=1, input_shuffle=4)),
        ("sixteen channels", thin(16, 16, 4, (5, 5), padding=1)),
        ("scale", thin(4, 4, 4, (5, 6), padding=1, epilogue=Epilogue("gelu", scale=True))),
    ]
    return _cases(rows, IMPLICIT)


def group_leaders(problem: ConvProblem, direction: str) -> list[int]:
    """The group of each input channel, or of each output channel for the weight's gradient."""
    each = problem.c_per_group if direction == "input_grad" else problem.k_per_group
    return [channel // each for channel in range(each * problem.groups)]
