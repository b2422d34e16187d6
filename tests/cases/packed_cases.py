"""Convolutions of thin groups for the packed-groups kernel, on every lane: each case has the reason it is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from case import Case

from grouped_conv.kernels import ConvProblem, Epilogue
from grouped_conv.kernels.device_code import epilogue as jit_epilogue
from grouped_conv.kernels.device_code import gradient, reduction
from grouped_conv.kernels.packed import sums
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig, why_invalid

BIAS_RELU = Epilogue("relu", bias=True)
STEP = {
    gradient: ("load_gradient", "load_or_zero"),
    sums: ("load_row", "add_row"),
    jit_epilogue: ("store_tile",),
    reduction: ("multiply_add",),
}
"""Device code of one step of the loops: the load of a gradient or a row, a product, a store."""


def thin(
    c: int, k: int, groups: int, size: tuple[int, int], kernel: tuple[int, int] = (3, 3), batch: int = 1, **keywords
) -> ConvProblem:
    """`groups` groups of `c` to `k` channels."""
    return ConvProblem.of((batch, groups * c, *size), (groups * k, c, *kernel), groups=groups, **keywords)


SHAPES: tuple[tuple[str, ConvProblem], ...] = (
    ("ResNeXt stage 1", thin(4, 4, 8, (9, 10), padding=1, batch=2)),
    ("ResNeXt stage 2, stride 2", thin(8, 8, 4, (9, 11), stride=2, padding=1)),
    ("ResNeXt stage 3", thin(16, 16, 3, (7, 7), padding=1)),
    ("ResNeXt stage 4: wider than a pack of one", thin(32, 32, 2, (5, 7), padding=1)),
    ("ShuffleNet 1x1", thin(8, 4, 6, (6, 7), (1, 1), batch=2)),
    ("more outputs than inputs", thin(2, 6, 5, (6, 8), padding=1)),
    ("fewer outputs than inputs", thin(12, 3, 5, (6, 8), padding=1)),
    ("three channels", thin(3, 3, 11, (8, 7), padding=1)),
    ("five channels in, one out", thin(5, 1, 7, (7, 8), padding=1)),
    ("six channels", thin(6, 6, 5, (6, 6), padding=1, stride=(1, 2))),
    ("groups leave the last pack almost empty", thin(4, 4, 9, (6, 6), padding=1)),
    ("fewer groups than a pack", thin(2, 2, 3, (6, 9), padding=1)),
    ("one group", thin(4, 4, 1, (6, 9), padding=1)),
    ("one channel per group", thin(1, 2, 10, (6, 7), padding=1)),
    ("dilated columns with gaps", thin(4, 4, 4, (8, 12), padding=(1, 3), dilation=(1, 3))),
    ("dilation reaches past the image", thin(4, 4, 4, (6, 6), padding=4, dilation=4)),
    ("stride larger than the kernel", thin(4, 4, 4, (9, 13), (2, 2), stride=(3, 5))),
    ("different pads per side", thin(4, 4, 4, (7, 6), (3, 2), padding=(2, 0, 1, 3), stride=(2, 1))),
    ("wide and flat: one dimension", thin(4, 4, 4, (1, 37), (1, 3), padding=(0, 0, 1, 1))),
    ("tall and narrow", thin(4, 4, 4, (33, 1), (3, 1), padding=(1, 1, 0, 0))),
    ("5x5", thin(4, 4, 4, (8, 8), (5, 5), padding=2)),
    ("one pixel", thin(4, 4, 4, (1, 1), (1, 1))),
    ("many tiny images in one tile", thin(4, 4, 4, (2, 3), padding=1, batch=9)),
)


def configs(problem: ConvProblem) -> Iterator[PackedGroupsConfig]:
    """Narrow and wide packs, even and odd strips, with and without weights on chip."""
    for pack, strip, tiles, resident, ahead in (
        (4, 4, 2, True, 1),
        (8, 2, 3, True, 0),
        (2, 7, 1, True, 2),
        (3, 1, 2, False, 1),
    ):
        config = PackedGroupsConfig(
            pack=pack, strip=strip, tiles_per_program=tiles, resident=resident, rows_ahead=ahead, block_m=16
        )
        while config.pack > 1 and why_invalid(problem, config) is not None:
            config = replace(config, pack=config.pack // 2)
        if why_invalid(problem, config) is None:
            yield config


def shape_cases() -> Iterator[Case]:
    """Every shape in every loop; dtypes, layouts and epilogues rotate through them."""
    dtypes = itertools.cycle([("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32")])
    layouts = itertools.cycle([(True, True), (False, True), (True, True), (True, False), (False, False)])
    epilogues = itertools.cycle(
        [
            BIAS_RELU,
            Epilogue(),
            Epilogue("silu", bias=True, scale=True),
            Epilogue("none", scale=True, residual=True),
            Epilogue("hardswish", bias=True, residual=True),
            Epilogue("leaky_relu", negative_slope=0.3),
        ]
    )
    for reason, shape in SHAPES:
        for config in configs(shape):
            (dtype, precision), (x_last, w_last) = next(dtypes), next(layouts)
            problem = replace(
                shape,
                dtype=dtype,
                precision=precision,
                input_channels_last=x_last,
                weight_channels_last=w_last,
                epilogue=next(epilogues),
            )
            yield Case(reason, problem, config)
        next(dtypes)


def shuffle_cases() -> Iterator[Case]:
    """Shuffles that keep runs of channels together and shuffles that do not; with what stays in the order before."""
    plain = thin(4, 4, 8, (6, 7), padding=1)
    full = Epilogue("relu", bias=True, scale=True, residual=True)
    for before, after in ((1, 8), (4, 1), (4, 8), (2, 16), (8, 4), (32, 32), (16, 2)):
        for pack, epilogue in ((8, BIAS_RELU), (4, full)):
            problem = replace(plain, input_shuffle=before, epilogue=replace(epilogue, shuffle=after))
            yield Case("shuffles", problem, PackedGroupsConfig(pack=pack, strip=2, block_m=16))
    odd = thin(6, 9, 5, (5, 6), padding=1)
    for before, after in ((3, 15), (6, 5), (5, 9)):
        problem = replace(odd, input_shuffle=before, epilogue=replace(full, shuffle=after), dtype="bfloat16")
        yield Case("shuffles of odd groups", problem, PackedGroupsConfig(pack=4, strip=3, block_m=16))


def all_cases() -> list[Case]:
    """Everything the interpreter lane runs."""
    return [*shape_cases(), *shuffle_cases()]
