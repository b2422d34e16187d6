"""One table of convolutions for every lane: each case has the reason it is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from case import Case

from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, ImplicitGemmConfig
from grouped_conv.kernels.families import why_invalid

BIAS_RELU = Epilogue("relu", bias=True)


def alexnet_layers(batch: int, dtype: str = "float16", **options: object) -> dict[str, ConvProblem]:
    """AlexNet's five convolutions (two groups) with bias and ReLU, as the 2012 network has them."""
    shapes = {
        "conv1": ((batch, 3, 227, 227), (96, 3, 11, 11), {"stride": 4}),
        "conv2": ((batch, 96, 27, 27), (256, 48, 5, 5), {"padding": 2, "groups": 2}),
        "conv3": ((batch, 256, 13, 13), (384, 256, 3, 3), {"padding": 1}),
        "conv4": ((batch, 384, 13, 13), (384, 192, 3, 3), {"padding": 1, "groups": 2}),
        "conv5": ((batch, 384, 13, 13), (256, 192, 3, 3), {"padding": 1, "groups": 2}),
    }
    return {
        name: ConvProblem.of(x, w, dtype=dtype, epilogue=BIAS_RELU, **{**keywords, **options})
        for name, (x, w, keywords) in shapes.items()
    }


# reason, input shape, weight shape, keywords
SHAPES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, object]], ...] = (
    ("one pixel, one channel", (1, 1, 1, 1), (1, 1, 1, 1), {}),
    ("1x1 kernel, dense", (2, 24, 5, 7), (40, 24, 1, 1), {}),
    ("one channel per group", (2, 10, 6, 5), (10, 1, 3, 3), {"padding": 1, "groups": 10}),
    ("one channel per group, three outputs each", (1, 5, 7, 6), (15, 1, 3, 3), {"groups": 5}),
    ("thin groups of 4", (1, 32, 9, 8), (32, 4, 3, 3), {"padding": 1, "groups": 8}),
    ("three channels in, stride 4, 11x11", (1, 3, 31, 29), (24, 3, 11, 11), {"stride": 4}),
    ("5x5, AlexNet's conv2 groups", (1, 96, 9, 9), (64, 48, 5, 5), {"padding": 2, "groups": 2}),
    ("K/groups not a multiple of any block", (1, 32, 8, 8), (38, 16, 3, 3), {"padding": 1, "groups": 2}),
    ("odd channels: no alignment", (2, 21, 6, 6), (33, 7, 3, 3), {"padding": 1, "groups": 3}),
    ("channels divisible by 8 only", (1, 48, 7, 7), (48, 24, 3, 3), {"padding": 1, "groups": 2}),
    ("stride 2", (2, 32, 11, 10), (32, 16, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    ("different strides, dilations and pads per side", (1, 16, 12, 15), (32, 16, 3, 2),
     {"stride": (2, 1), "padding": (1, 0, 2, 3), "dilation": (1, 3)}),
    ("dilation reaches past the image", (1, 16, 9, 9), (16, 16, 3, 3), {"dilation": 4, "padding": 4}),
    ("kernel as large as the image", (1, 8, 6, 5), (16, 8, 6, 5), {}),
    ("padding beyond the kernel: rows of zeros", (1, 8, 4, 4), (8, 8, 2, 2), {"padding": 3}),
    ("31 taps: the last that fit one word", (1, 16, 5, 40), (16, 16, 1, 31), {"padding": (0, 0, 7, 8)}),
    ("7x7: row and column bits", (1, 16, 13, 12), (16, 8, 7, 7), {"padding": 3, "groups": 2, "stride": 2}),
    ("17 rows: comparisons in the loop", (1, 6, 20, 9), (16, 6, 17, 2), {"padding": (4, 4, 0, 0)}),
    ("wide and flat", (1, 16, 1, 65), (16, 16, 1, 3), {"padding": (0, 0, 1, 1)}),
    ("tall and narrow", (3, 16, 33, 1), (32, 16, 3, 1), {"padding": (1, 1, 0, 0)}),
)  # fmt: skip


def _configs(problem: ConvProblem) -> Iterator[ImplicitGemmConfig]:
    """Every loop variant that can run the problem, small tiles so that edges are met."""
    yield ImplicitGemmConfig(block_m=32, block_n=32, block_k=32, num_stages=2)
    for order in ("channels_inner", "taps_inner"):
        config = ImplicitGemmConfig(block_m=64, block_n=16, block_k=16, loop_order=order, swizzle_m=2)
        if why_invalid(problem, config) is None:
            yield config
    split = ImplicitGemmConfig(block_m=32, block_n=16, block_k=16, split_k=3, swizzle_m=3)
    if why_invalid(problem, split) is None:
        yield split


def shape_cases() -> Iterator[Case]:
    """Odd and tiny shapes in every loop variant; dtypes, layouts and epilogues rotate through them."""
    dtypes = itertools.cycle([("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")])
    layouts = itertools.cycle([(True, True), (False, True), (True, False), (False, False), (True, True)])
    epilogues = itertools.cycle(
        [Epilogue(), BIAS_RELU, Epilogue("none", scale=True, bias=True, residual=True), Epilogue("silu", bias=True)]
    )
    for (reason, x, w, keywords), again in itertools.product(SHAPES, (False, True)):
        shape = ConvProblem.of(x, w, **keywords)
        for config in _configs(shape):
            (dtype, precision), (x_last, w_last) = next(dtypes), next(layouts)
            problem = replace(
                shape,
                batch=shape.batch + again,
                dtype=dtype,
                precision=precision,
                input_channels_last=x_last,
                weight_channels_last=w_last,
                epilogue=next(epilogues),
            )
            yield Case(reason, problem, config)
        next(dtypes)  # the second time around meets other dtypes


def product_cases() -> Iterator[Case]:
    """One odd grouped shape through every dtype x layout, and every activation x saved value x variant."""
    shape = ConvProblem.of((2, 32, 7, 6), (44, 16, 3, 3), padding=1, groups=2)
    config = ImplicitGemmConfig(block_m=64, block_n=32, block_k=32)
    for (dtype, precision), x_last, w_last in itertools.product(
        (("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")),
        (True, False),
        (True, False),
    ):
        problem = replace(
            shape,
            dtype=dtype,
            precision=precision,
            input_channels_last=x_last,
            weight_channels_last=w_last,
            epilogue=BIAS_RELU,
        )
        yield Case("dtype by layout", problem, config)
    for activation, split in itertools.product(ACTIVATIONS, (1, 2)):
        epilogue = Epilogue(activation, bias=True, scale=True, residual=True, save_preactivation=split == 2)
        for dtype in ("float32", "float16"):
            problem = replace(shape, dtype=dtype, precision="ieee", epilogue=epilogue)
            yield Case(f"epilogue {activation}", problem, replace(config, split_k=split))
    yield Case(
        "leaky slope",
        replace(shape, dtype="float32", precision="ieee", epilogue=Epilogue("leaky_relu", negative_slope=0.3)),
        config,
    )


def shuffle_cases() -> Iterator[Case]:
    """Channel shuffles before and after, as ShuffleNet has them and with group counts of their own."""
    config = ImplicitGemmConfig(block_m=32, block_n=32, block_k=32, num_stages=2)
    epilogues = itertools.cycle([Epilogue(shuffle=3), replace(BIAS_RELU, shuffle=2), Epilogue("silu", shuffle=1)])
    rows = (
        ("ShuffleNet's 1x1, three groups", (1, 60, 5, 6), (24, 20, 1, 1), {"groups": 3}, 1),
        ("channels that are groups apart", (2, 24, 6, 5), (36, 6, 3, 3), {"groups": 4, "padding": 1}, 6),
        ("shuffled as the layer before stored it", (1, 24, 6, 5), (18, 12, 3, 3), {"groups": 2, "stride": 2}, 2),
        ("no group count of the layer", (1, 30, 4, 7), (12, 10, 1, 3), {"groups": 3}, 5),
        ("one channel per group", (1, 12, 6, 6), (12, 1, 3, 3), {"groups": 12, "padding": 1}, 4),
    )
    dtypes = itertools.cycle([("float16", True), ("float32", False), ("bfloat16", True)])
    for (reason, x, w, keywords, before), again in itertools.product(rows, range(3)):
        dtype, last = next(dtypes)
        problem = ConvProblem.of(
            x, w, dtype=dtype, precision="ieee", channels_last=last, epilogue=next(epilogues), input_shuffle=before,
            **keywords,
        )  # fmt: skip
        split = replace(config, block_k=16, split_k=2)
        yield Case(f"shuffle {reason}", problem, split if why_invalid(problem, split) is None else config)
        if again == 2:
            next(epilogues)  # the next row meets them in another order


def alexnet_cases() -> Iterator[Case]:
    """AlexNet's layers at full size, batch 1 and 2, with big tiles so that the interpreter has few programs to run."""
    for batch, dtype in ((1, "float16"), (2, "bfloat16"), (1, "float32")):
        for name, problem in alexnet_layers(batch, dtype, precision="ieee").items():
            tap = name in ("conv3", "conv4", "conv5") and dtype == "float16"
            config = ImplicitGemmConfig(
                block_m=1024, block_n=128, block_k=64, num_warps=8, loop_order="taps_inner" if tap else "flat"
            )
            yield Case(f"AlexNet {name} batch {batch}", problem, config)


def all_cases() -> list[Case]:
    """Everything the interpreter lane runs."""
    return [*shape_cases(), *product_cases(), *shuffle_cases(), *alexnet_cases()]
