"""One table of LRN + pool problems for every lane: each has the reason it is there and a configuration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from case import Case

from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem

ORDERS = (
    "lrn-pool", "relu-lrn-pool", "lrn-relu-pool", "pool-lrn", "relu-pool-lrn", "pool-relu-lrn", "pool-lrn-relu",
    "lrn-pool-relu", "lrn", "relu-lrn", "lrn-relu", "pool", "relu-pool",
)  # fmt: skip


# reason, input shape, keywords; alpha is large, so that a wrong window shows
SHAPES: tuple[tuple[str, tuple[int, ...], dict[str, object]], ...] = (
    ("AlexNet's norm1, towers of 48", (1, 96, 13, 13), {"groups": 2, "k": 2.0}),
    ("AlexNet's norm2, a window hangs over", (1, 256, 6, 6), {"groups": 2, "ceil_mode": True}),
    ("odd channels: one per thread", (2, 15, 7, 6), {}),
    ("towers of 18: vectors of 2", (1, 36, 7, 7), {"groups": 2}),
    ("towers of 12: vectors of 4", (2, 36, 6, 7), {"groups": 3, "ceil_mode": True}),
    ("towers of 3, narrower than the window", (1, 9, 5, 5), {"groups": 3}),
    ("towers of one channel", (1, 8, 5, 5), {"groups": 8}),
    ("one channel, one window", (1, 1, 3, 3), {}),
    ("window of 1", (1, 8, 6, 6), {"size": 1}),
    ("window of 2: one channel down, none up", (1, 16, 5, 5), {"size": 2}),
    ("window of 3", (1, 24, 7, 5), {"size": 3, "groups": 3}),
    ("window of 4", (1, 24, 7, 5), {"size": 4, "beta": 0.5}),
    ("window of 6: three channels down, a vector of 4", (1, 16, 5, 5), {"size": 6, "beta": 1.0}),
    ("window of 9: both neighbours in full", (1, 32, 6, 5), {"size": 9, "groups": 2}),
    ("window of 17: two vectors each way", (1, 40, 3, 3), {"size": 17}),
    ("window wider than the channels", (1, 4, 5, 5), {"size": 11}),
    ("any power", (1, 16, 7, 7), {"beta": 0.6, "k": 0.5}),
    ("power 0", (1, 16, 5, 5), {"beta": 0.0}),
    ("k of 0", (1, 16, 5, 5), {"k": 0.0}),
    ("padding on all sides", (1, 16, 7, 8), {"padding": 1}),
    ("padding and a window that hangs over", (2, 8, 6, 9), {"padding": 1, "ceil_mode": True}),
    ("2x2 windows side by side", (1, 16, 8, 7), {"kernel_size": 2}),
    ("2x2 windows with gaps", (1, 16, 9, 11), {"kernel_size": 2, "stride": 3}),
    ("3x3 at stride 1: two rows are shared", (1, 16, 6, 7), {"stride": 1, "padding": 1}),
    ("5x4 at stride 2x3", (1, 16, 9, 12), {"kernel_size": (5, 4), "stride": (2, 3), "padding": (2, 1)}),
    ("1x1 at stride 2", (1, 16, 7, 7), {"kernel_size": 1}),
    ("windows as large as the image", (1, 16, 4, 5), {"kernel_size": (4, 5)}),
    ("one row", (2, 16, 1, 17), {"kernel_size": (1, 3)}),
    ("one column", (1, 16, 19, 1), {"kernel_size": (3, 1)}),
)  # fmt: skip


def problem_of(shape: tuple[int, ...], keywords: dict[str, object], **more: object) -> LrnPoolProblem:
    """The problem; windows of one row or column step by one there."""
    kernel = keywords.get("kernel_size", 3)
    stride = tuple(1 if k == 1 else 2 for k in kernel) if isinstance(kernel, tuple) else 2
    return LrnPoolProblem.of(shape, **{"alpha": 0.3, "stride": stride, **keywords, **more})


def shape_cases() -> Iterator[Case]:
    """Every shape twice: orders, dtypes, strips and heights rotate through them."""
    dtypes = itertools.cycle(("float16", "bfloat16", "float32", "float16", "float32"))
    configs = itertools.cycle(
        LrnPoolConfig(block=block, strip=strip, rows=rows)
        for block, strip, rows in ((128, 2, 3), (256, 1, 100), (128, 3, 1), (128, 4, 2))
    )
    orders = itertools.cycle(ORDERS[:8])
    for (reason, shape, keywords), again in itertools.product(SHAPES, (False, True)):
        order = next(orders) if again else "lrn-pool"
        yield Case(reason, problem_of(shape, keywords, order=order, dtype=next(dtypes)), next(configs))


def order_cases() -> Iterator[Case]:
    """One odd shape in every order and dtype."""
    config = LrnPoolConfig(block=128, strip=2, rows=2)
    shape = problem_of((2, 48, 7, 6), {"groups": 2, "padding": 1, "ceil_mode": True})
    for order, dtype in itertools.product(ORDERS, ("float16", "bfloat16", "float32")):
        problem = LrnPoolProblem.from_json(shape.to_json() | {"order": order, "dtype": dtype})
        yield Case("order", problem, config)


def all_cases() -> list[Case]:
    """The whole table; 97 problems."""
    return [*shape_cases(), *order_cases()]


def with_batch(problem: LrnPoolProblem, batch: int) -> LrnPoolProblem:
    """The same problem with another batch."""
    return replace(problem, batch=batch)
