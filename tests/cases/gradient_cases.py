"""Problems with equal groups whose gradients every lane checks, each with the reason why we look at it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from case import Case

from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import TABLE_KERNEL, WeightGradConfig, pixels
from grouped_conv.kernels.values.config import KernelConfig

PLAIN = Epilogue()


def conv(x: tuple[int, ...], weight: tuple[int, ...], **options: object) -> ConvProblem:
    return ConvProblem.of(x, weight, groups=x[1] // weight[1], **options)  # type: ignore[arg-type]


SHAPES: tuple[tuple[str, ConvProblem], ...] = (
    ("AlexNet's conv2, a corner", conv((1, 32, 7, 7), (32, 16, 5, 5), padding=2)),
    ("AlexNet's conv4, a corner", conv((2, 64, 5, 5), (64, 32, 3, 3), padding=1)),
    ("AlexNet's conv1, stride 4", conv((1, 3, 23, 23), (16, 3, 11, 11), stride=4, padding=2)),
    ("ResNeXt's stride 2", conv((1, 64, 9, 9), (64, 16, 3, 3), stride=2, padding=1)),
    ("stride 2, even sizes, no padding", conv((2, 16, 8, 10), (24, 8, 3, 3), stride=2)),
    ("stride larger than the kernel: classes without taps", conv((1, 16, 9, 7), (16, 16, 2, 1), stride=3)),
    ("rows that no window reaches", conv((1, 16, 12, 11), (16, 16, 3, 3), stride=4)),
    ("uneven stride and padding", conv((1, 24, 9, 11), (16, 12, 3, 2), stride=(1, 2), padding=(0, 2, 1, 1))),
    ("dilation", conv((1, 16, 11, 9), (32, 8, 3, 3), padding=2, dilation=2)),
    ("dilation and stride share a factor", conv((1, 16, 11, 12), (16, 8, 3, 3), stride=2, padding=2, dilation=2)),
    ("dilation 3, stride 2: a class's rows are two apart", conv((1, 8, 13, 10), (8, 8, 3, 4), stride=2, dilation=3)),
    ("pointwise, stride 2: three classes are zero", conv((2, 20, 7, 6), (40, 10, 1, 1), stride=2)),
    ("pointwise, 20 channels to 28", conv((1, 60, 5, 4), (84, 20, 1, 1))),
    ("one row", conv((2, 16, 1, 17), (16, 16, 1, 5), padding=(0, 0, 2, 2))),
    ("a kernel of 35 taps: no word holds them", conv((1, 8, 9, 9), (16, 8, 5, 7), padding=3)),
    ("one pixel, one channel", conv((1, 1, 1, 1), (1, 1, 1, 1))),
    ("thin groups, 4 wide", conv((1, 32, 6, 5), (32, 4, 3, 3), padding=1)),
    ("depthwise, multiplier 2", conv((1, 12, 6, 5), (24, 1, 3, 3), padding=1)),
    ("odd channels", conv((3, 21, 5, 4), (35, 3, 3, 3), padding=1)),
    ("more pixels than a tile, several images", conv((5, 16, 7, 5), (16, 8, 3, 3), padding=1)),
)
DTYPES = (("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32"))
INPUT_CONFIGS = (
    InputGradConfig(block_m=32, block_n=16, block_k=16),
    InputGradConfig(block_m=64, block_n=32, block_k=32, num_stages=2),
    InputGradConfig(block_m=16, block_n=64, block_k=16, loop_order="channels_inner"),
)
WEIGHT_CONFIGS = (
    WeightGradConfig(block_m=16, block_n=32, block_k=16, splits=2),
    WeightGradConfig(block_m=32, block_n=64, block_k=32, num_stages=2),
    WeightGradConfig(block_m=16, block_n=16, block_k=64, splits=3),
)


def fitted(problem: ConvProblem, config: KernelConfig) -> KernelConfig:
    """The configuration, or the nearest one that can run the problem."""
    if isinstance(config, InputGradConfig) and config.loop_order != "flat":
        whole = problem.k_per_group % config.block_k == 0 and problem.epilogue.shuffle == 1
        return config if whole else replace(config, loop_order="flat")
    if isinstance(config, WeightGradConfig):
        return replace(config, splits=min(config.splits, -(-pixels(problem) // config.block_k)))
    return config


def cases() -> Iterator[Case]:
    """Every shape in both directions, with dtypes, epilogues and configurations in turn."""
    dtypes = itertools.cycle(DTYPES)
    epilogues = itertools.cycle(
        Epilogue(activation, scale=scale, bias=True)
        for activation, scale in zip(ACTIVATIONS * 2, itertools.cycle((False, True, False)), strict=False)
    )
    configs = {direction: itertools.cycle(c) for direction, c in (("i", INPUT_CONFIGS), ("w", WEIGHT_CONFIGS))}
    for reason, problem in SHAPES:
        for direction in ("i", "w"):
            for plain in (True, False):
                dtype, precision = next(dtypes)
                epilogue = PLAIN if plain else next(epilogues)
                varied = replace(problem, dtype=dtype, precision=precision, epilogue=epilogue)
                yield Case(reason, varied, fitted(varied, next(configs[direction])))
        next(dtypes)


TABLE_SHAPES: tuple[tuple[str, ConvProblem], ...] = (
    *((reason, problem) for reason, problem in SHAPES if problem.kernel_size <= TABLE_KERNEL),
    ("a bit for every row and column of the kernel", conv((1, 16, 8, 9), (16, 8, 15, 16), padding=7)),
    ("windows that touch nothing but padding", conv((1, 16, 3, 4), (16, 8, 3, 2), padding=(4, 0, 2, 5))),
    ("whole steps of pixels, whole tiles of channels", conv((2, 16, 8, 16), (64, 16, 3, 3), padding=1)),
    ("parts that begin beyond the last pixel", conv((1, 16, 9, 15), (16, 16, 3, 3), padding=1)),
)


def table_cases() -> Iterator[Case]:
    """Weight gradients that read a table of pixels, plain and behind an activation."""
    dtypes = itertools.cycle(DTYPES)
    epilogues = itertools.cycle((PLAIN, Epilogue("relu", scale=True), PLAIN, Epilogue("gelu")))
    configs = itertools.cycle((*WEIGHT_CONFIGS, WeightGradConfig(block_m=16, block_n=32, block_k=32, splits=4)))
    for reason, problem in TABLE_SHAPES:
        for _ in range(2):
            dtype, precision = next(dtypes)
            varied = replace(problem, dtype=dtype, precision=precision, epilogue=next(epilogues))
            yield Case(reason, varied, replace(fitted(varied, next(configs)), pixel_table=True))
        next(epilogues)
        next(dtypes)


def shuffled_cases() -> Iterator[Case]:
    """Channel shuffles before and after, with an activation whose derivative reads the shuffled output or not."""
    for activation in ("none", "relu", "gelu"):
        problem = conv(
            (1, 24, 5, 6), (36, 8, 3, 3), padding=1, epilogue=Epilogue(activation, shuffle=3), input_shuffle=2
        )
        yield Case("shuffles", problem, fitted(problem, INPUT_CONFIGS[0]))
        yield Case("shuffles", problem, fitted(problem, WEIGHT_CONFIGS[0]))
        yield Case("shuffles", problem, replace(fitted(problem, WEIGHT_CONFIGS[0]), pixel_table=True))
