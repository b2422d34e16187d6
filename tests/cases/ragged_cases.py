"""One table of unequal, overlapping and listed groups for every lane: each case has the reason it is there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from case import Case
from ragged_oracle import ragged_problem

from grouped_conv.kernels import ACTIVATIONS, Epilogue, GroupLayout
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig

CONFIG = RaggedConfig(block_m=32, block_n=16, block_k=16)
LISTED = GroupLayout.explicit(9, [[3, 1, 8], [0, 2, 4, 5], [8, 6, 7]], [5, 3, 5])
SERIES = GroupLayout.log_series(16, 16, 4)

BIAS_RELU = Epilogue("relu", bias=True)

LAYOUTS: dict[str, GroupLayout] = {
    "log series, alignment 8": GroupLayout.log_series(64, 64, 4),
    "log series, alignment 2": GroupLayout.log_series(16, 32, 4),
    "log series down to one channel": GroupLayout.log_series(8, 8, 4),
    "alignment 4": GroupLayout.sizes([12, 4, 20], [16, 8, 24]),
    "alignment 2": GroupLayout.sizes([6, 10, 2], [6, 2, 10]),
    "odd sizes, alignment 1": GroupLayout.sizes([3, 5, 1], [7, 1, 3]),
    "groups of one channel": GroupLayout.sizes([1, 1, 6], [1, 9, 2]),
    "one group of two is deep": GroupLayout.sizes([40, 8], [8, 40]),
    "more outputs than a tile": GroupLayout.sizes([8, 16], [72, 24]),
    "overlap, aligned": GroupLayout.overlapping(32, 24, groups=3, width=16),
    "overlap, starts not aligned, widths are": GroupLayout.overlapping(25, 24, groups=3, width=16),
    "overlap, all groups read nearly all": GroupLayout.overlapping(9, 10, groups=5, width=8),
    "random lists": GroupLayout.random_sparse(24, 32, groups=4, width=12, seed=3),
    "random lists of unequal lengths": GroupLayout.explicit(
        11, [[10, 0, 5], [7, 1, 2, 3, 9, 4, 8], [6, 5]], [4, 1, 11]
    ),
    "lists of aligned runs of 8": GroupLayout.explicit(
        32, [[*range(24, 32), *range(8)], [*range(8, 16)], [*range(16, 24), *range(8, 16)]], [16, 8, 8]
    ),
    "lists backwards": GroupLayout.explicit(6, [[5, 4, 3], [2, 1, 0]], [2, 2]),
    "channels nobody reads": GroupLayout.explicit(20, [range(2, 6), [19, 7]], [8, 3], allow_unread=True),
    "the same channels for all, unequal outputs": GroupLayout.explicit(8, [range(8), range(8), range(8)], [1, 8, 2]),
    "interleaved": GroupLayout.explicit(12, [range(0, 12, 3), range(1, 12, 3), range(2, 12, 3)], 4),
}

# reason, image, kernel, keywords
WINDOWS: tuple[tuple[str, tuple[int, int], tuple[int, int], dict[str, object]], ...] = (
    ("3x3", (6, 5), (3, 3), {"padding": (1, 1, 1, 1)}),
    ("1x1", (5, 7), (1, 1), {}),
    ("stride 2", (9, 8), (3, 3), {"stride": (2, 2), "padding": (1, 1, 1, 1)}),
    ("strides, dilations and pads of all kinds", (12, 11), (3, 2),
     {"stride": (2, 1), "dilation": (1, 3), "padding": (1, 0, 2, 3)}),
    ("7x7: row and column bits", (9, 8), (7, 7), {"padding": (3, 3, 3, 3), "stride": (2, 2)}),
    ("17 rows: comparisons in the loop", (20, 4), (17, 2), {"padding": (4, 4, 0, 0)}),
    ("kernel as large as the image", (4, 3), (4, 3), {}),
    ("5x5 on one row", (1, 21), (1, 5), {"padding": (0, 0, 2, 2)}),
)  # fmt: skip


CONFIGS = (
    RaggedConfig(block_m=32, block_n=16, block_k=16, num_stages=2),
    RaggedConfig(block_m=64, block_n=32, block_k=32, num_stages=3),
    RaggedConfig(block_m=16, block_n=64, block_k=64, num_stages=1),
)
DTYPES = (("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32"))


def layout_cases() -> Iterator[Case]:
    """Every layout with two windows; dtypes, memory formats, epilogues and tiles rotate through them."""
    dtypes, configs = itertools.cycle(DTYPES), itertools.cycle(CONFIGS)
    formats = itertools.cycle([(True, True), (False, True), (True, False), (False, False), (True, True)])
    windows = itertools.cycle(WINDOWS)
    epilogues = itertools.cycle(
        [Epilogue(), BIAS_RELU, Epilogue("none", scale=True, bias=True, residual=True), Epilogue("silu", bias=True)]
    )
    for (name, layout), _ in itertools.product(LAYOUTS.items(), range(2)):
        (what, size, kernel, keywords), (dtype, precision) = next(windows), next(dtypes)
        x_last, w_last = next(formats)
        problem = ragged_problem(
            layout,
            size,
            kernel,
            batch=1 + (what == "1x1"),
            dtype=dtype,
            precision=precision,
            input_channels_last=x_last,
            weight_channels_last=w_last,
            epilogue=next(epilogues),
            **keywords,
        )
        yield Case(f"{name}, {what}", problem, next(configs))


def product_cases() -> Iterator[Case]:
    """One layout through every dtype and memory format, and every activation with all operands and saved values."""
    layout = LAYOUTS["odd sizes, alignment 1"]
    shape = ragged_problem(layout, (11, 9), padding=(1, 1, 1, 1), epilogue=BIAS_RELU)
    for (dtype, precision), x_last, w_last in itertools.product(DTYPES, (True, False), (True, False)):
        problem = replace(
            shape, dtype=dtype, precision=precision, input_channels_last=x_last, weight_channels_last=w_last
        )
        yield Case("dtype by memory format", problem, CONFIGS[0])
    for activation, dtype in itertools.product(ACTIVATIONS, ("float32", "float16")):
        epilogue = Epilogue(activation, bias=True, scale=True, residual=True, save_preactivation=True)
        yield Case(f"epilogue {activation}", replace(shape, dtype=dtype, epilogue=epilogue), CONFIGS[1])
    slope = Epilogue("leaky_relu", negative_slope=0.3)
    yield Case("leaky slope", replace(shape, dtype="float32", epilogue=slope), CONFIGS[1])


def all_cases() -> list[Case]:
    """Everything the interpreter lane runs."""
    return [*layout_cases(), *product_cases()]
