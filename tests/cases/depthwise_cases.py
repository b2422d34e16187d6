"""Depthwise convolutions for every lane: each case has the reason it is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from case import Case

from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig, why_invalid

BIAS_RELU = Epilogue("relu", bias=True)
SMALL = DepthwiseConfig(block_c=16, tile_h=2, tile_w=2, block_h=1, block_w=4, num_warps=1, pack_weight=False)
"""Few channels and pixels per program, so that a small problem has edges and more than one program."""


def depthwise(
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    multiplier: int = 1,
    batch: int = 1,
    dtype: str = "float16",
    epilogue: Epilogue = BIAS_RELU,
    **keywords: object,
) -> ConvProblem:
    """A depthwise problem; padded to keep the size unless `padding` says otherwise."""
    keywords.setdefault("padding", (kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2))
    return ConvProblem.of(
        (batch, channels, *size),
        (channels * multiplier, 1, *kernel),
        groups=channels,
        dtype=dtype,
        precision="ieee",
        epilogue=epilogue,
        **keywords,
    )


# reason, channels, image, kernel, keywords
SHAPES: tuple[tuple[str, int, tuple[int, int], tuple[int, int], dict[str, object]], ...] = (
    ("one pixel, one channel", 1, (1, 1), (1, 1), {}),
    ("1x1 kernel", 24, (4, 5), (1, 1), {}),
    ("3x3", 16, (7, 6), (3, 3), {}),
    ("3x3, batch crosses blocks", 16, (3, 3), (3, 3), {"batch": 5}),
    ("3x3, odd channels", 21, (5, 6), (3, 3), {}),
    ("3x3, five channels, no padding", 5, (6, 7), (3, 3), {"padding": 0}),
    ("3x3, channels divisible by 8 only", 40, (4, 6), (3, 3), {}),
    ("3x3, stride 2", 16, (9, 8), (3, 3), {"stride": 2}),
    ("3x3, stride 3 leaves a rest", 16, (11, 12), (3, 3), {"stride": 3, "padding": 0}),
    ("1x1, stride 2 skips inputs", 16, (7, 8), (1, 1), {"stride": 2}),
    ("3x3, dilation 2", 16, (8, 7), (3, 3), {"dilation": 2, "padding": 2}),
    ("dilation past the image, stride 2", 16, (7, 9), (3, 3), {"dilation": 3, "padding": 3, "stride": 2}),
    ("every side different", 16, (8, 9), (3, 2), {"stride": (2, 1), "padding": (1, 0, 2, 3), "dilation": (1, 2)}),
    ("2x4 kernel", 16, (6, 9), (2, 4), {"padding": (1, 0, 1, 2)}),
    ("5x5", 16, (6, 7), (5, 5), {}),
    ("7x7 on a 7x7 image", 16, (7, 7), (7, 7), {}),
    ("9x9", 8, (5, 6), (9, 9), {}),
    ("1x31", 16, (1, 40), (1, 31), {}),
    ("31x1", 16, (33, 1), (31, 1), {}),
    ("3x12, columns in three chunks", 16, (3, 9), (3, 12), {"padding": (1, 1, 6, 5)}),
    ("1x13, stride 2, dilation 2", 16, (1, 21), (1, 13), {"stride": 2, "dilation": 2, "padding": (0, 0, 12, 11)}),
    ("31x31, mostly padding", 8, (4, 5), (31, 31), {}),
    ("short and wide", 16, (1, 65), (1, 4), {"padding": (0, 0, 3, 0)}),
    ("tall and narrow", 16, (65, 1), (4, 1), {"padding": (3, 0, 0, 0)}),
    ("padding beyond the kernel", 16, (3, 4), (2, 2), {"padding": 3}),
    ("multiplier 2", 16, (5, 4), (3, 3), {"multiplier": 2}),
    ("multiplier 2, odd channels", 21, (4, 5), (3, 2), {"multiplier": 2, "padding": (1, 1, 0, 1)}),
    ("multiplier 3", 5, (5, 4), (3, 3), {"multiplier": 3}),
    ("multiplier 4, stride 2", 16, (6, 5), (3, 3), {"multiplier": 4, "stride": 2}),
)  # fmt: skip


def _configs(problem: ConvProblem) -> Iterator[DepthwiseConfig]:
    """Every path through the kernel that can run the problem: unrolled, packed, looped, walked, turned."""
    multiplier = problem.k_per_group
    wishes: tuple[DepthwiseConfig, ...] = (
        replace(SMALL, multipliers=multiplier, block_h=2),
        replace(SMALL, tile_h=1, tile_w=3, pack_weight=True, static_channels=False),
        replace(SMALL, tile_h=1, tile_w=4, row_loop=True, pack_weight=True, multipliers=multiplier),
        replace(SMALL, tile_h=2, tile_w=1, row_loop=True, strip="h", interior=True),
        replace(SMALL, tile_h=1, tile_w=2, steps=2, resident=True, interior=True, pack_weight=True),
    )
    if max(problem.kernel_size) > 11:
        wishes += (replace(SMALL, tile_h=1, tile_w=3, row_loop=True, chunk=4),)
    for config in wishes:
        if why_invalid(problem, config) is None:
            yield config


def shape_cases() -> Iterator[Case]:
    """Odd and tiny shapes on every path; dtypes, layouts and epilogues rotate through them."""
    dtypes = itertools.cycle(("float16", "bfloat16", "float32"))
    layouts = itertools.cycle([(True, True), (False, True), (True, False), (False, False), (True, True)])
    epilogues = itertools.cycle(
        [Epilogue(), BIAS_RELU, Epilogue("none", scale=True, bias=True, residual=True), Epilogue("silu", bias=True)]
    )
    for reason, channels, size, kernel, keywords in SHAPES:
        shape = depthwise(channels, size, kernel, **keywords)
        for config in _configs(shape):
            x_last, w_last = next(layouts)
            problem = replace(
                shape,
                dtype=next(dtypes),
                input_channels_last=x_last,
                weight_channels_last=w_last,
                epilogue=next(epilogues),
            )
            yield Case(reason, problem, config)
        next(dtypes)  # the next shape's paths meet other dtypes


def epilogue_cases() -> Iterator[Case]:
    """Every activation with all operands, and a shuffled output, one output per input channel and more."""
    for activation, multiplier in zip(ACTIVATIONS, itertools.cycle((1, 2, 3)), strict=False):
        epilogue = Epilogue(activation, bias=True, scale=True, residual=True)
        problem = depthwise(8, (4, 3), (3, 3), multiplier, dtype="float32", epilogue=epilogue)
        yield Case(f"epilogue {activation}", problem, replace(SMALL, multipliers=multiplier))
    for multiplier in (1, 2):
        problem = depthwise(12, (4, 3), (3, 3), multiplier, epilogue=Epilogue("relu", bias=True, shuffle=3))
        yield Case("shuffled output", problem, replace(SMALL, multipliers=multiplier))
    slope = Epilogue("leaky_relu", negative_slope=0.3)
    yield Case("leaky slope", depthwise(8, (4, 3), (3, 3), epilogue=slope), SMALL)


def all_cases() -> list[Case]:
    """Everything the interpreter lane runs."""
    return [*shape_cases(), *epilogue_cases()]


def mobilenet_v2(batch: int, dtype: str = "float16") -> dict[str, ConvProblem]:
    """The depthwise layers of MobileNetV2 at 224 x 224: 3x3, each with its image, channels and stride."""
    rows = (
        (112, 32, 1), (112, 96, 2), (56, 144, 1), (56, 144, 2), (28, 192, 1), (28, 192, 2), (14, 384, 1), (14, 576, 1),
        (14, 576, 2), (7, 960, 1),
    )  # fmt: skip
    return {
        f"{channels}@{size}/{stride}": depthwise(
            channels, (size, size), (3, 3), batch=batch, dtype=dtype, epilogue=Epilogue("relu6", bias=True),
            stride=stride,
        )
        for size, channels, stride in rows
    }  # fmt: skip


def convnext_tiny(batch: int, dtype: str = "float16") -> dict[str, ConvProblem]:
    """The depthwise layers of ConvNeXt-T at 224 x 224: 7x7."""
    return {
        f"{channels}@{size}": depthwise(
            channels, (size, size), (7, 7), batch=batch, dtype=dtype, epilogue=Epilogue(bias=True)
        )
        for size, channels in ((56, 96), (28, 192), (14, 384), (7, 768))
    }
