"""The grouped layers of well-known networks as small problems, and layouts of unequal groups: data for tests.

Channels, groups, kernels and strides are the networks' own; batch is 1 and images are a few pixels, so that the
interpreter has few programs to run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from grouped_conv.autotune.workloads.named import MODELS, Layer, layer_problem
from grouped_conv.kernels import ConvProblem, GroupLayout

DTYPES = ("float16", "bfloat16", "float32")
FORMATS = ((True, True), (True, False), (False, True), (False, False))
"""(input, weight) channels innermost."""
MOST_PACKED = 768
"""Filters above which weights lie as the kernels want them: packing takes a program per filter."""
NETWORKS = tuple(name for name in MODELS if name != "alexnet")


@dataclass(frozen=True)
class LayerCase:
    """A layer of a network on a small image."""

    network: str
    layer: str
    problem: ConvProblem

    @property
    def id(self) -> str:
        return f"{self.network} {self.layer} {self.problem}".replace(" ", "-")


def grouped_layers(network: str) -> list[Layer]:
    """The network's layers with groups, each once whatever its image: rows that differ in more than that stay apart."""
    found: dict[Layer, Layer] = {}
    for row in MODELS[network]:
        if row.groups > 1:
            found.setdefault(replace(row, name="", height=0, count=1), row)
    return list(found.values())


def layer_cases(network: str) -> Iterator[LayerCase]:
    """The network's grouped layers on images of 7 to 12 pixels; dtypes and memory formats take turns."""
    turn = count(NETWORKS.index(network))
    for row in grouped_layers(network):
        index = next(turn)
        small = replace(row, height=7 + index * 5 % 6)
        problem = layer_problem(small, 1, DTYPES[index % 3])
        input_last, weight_last = FORMATS[index % 4]
        weight_last |= row.filters > MOST_PACKED
        problem = replace(
            problem, precision="ieee", input_channels_last=input_last, weight_channels_last=weight_last
        )  # fmt: skip
        yield LayerCase(network, row.name, problem)


def log_series(channels: int, filters: int | None = None) -> GroupLayout:
    """Groups of a half, a quarter, an eighth and an eighth of the channels."""
    parts = (2, 4, 8, 8)
    return GroupLayout.sizes([channels // p for p in parts], [(filters or channels) // p for p in parts])


def random_index(channels: int, filters: int, groups: int, fan_in: int, seed: int = 0) -> GroupLayout:
    """Each group reads `fan_in` channels drawn at random (cuda-convnet's random sparse connections); all are read.

    Group g is dealt the channels g, g + groups, g + 2 groups, ... of a shuffled deck, then draws the rest.
    """
    from random import Random

    draw = Random(seed)
    deck = draw.sample(range(channels), channels)
    index = []
    for group in range(groups):
        dealt = deck[group::groups]
        others = [channel for channel in range(channels) if channel not in dealt]
        index.append(dealt + draw.sample(others, fan_in - len(dealt)))
    return GroupLayout.explicit(channels, index, [filters // groups] * groups)


RAGGED = {
    "log series 64": log_series(64),
    "log series 96 to 48": log_series(96, 48),
    "log series 24, unaligned": log_series(24, 40),
    "sizes 1, 5, 2": GroupLayout.sizes([1, 5, 2], [3, 4, 1]),
    "one wide, many narrow": GroupLayout.sizes([32, 8, 8, 8, 8], [8, 16, 16, 16, 8]),
    "two sizes": GroupLayout.sizes([16, 16, 48, 48], [16, 16, 16, 16]),
    "sizes turned round": GroupLayout.sizes([8, 8, 16, 32], [32, 16, 8, 8]),
    "overlap of a half": GroupLayout.overlapping(48, 32, 4, 24),
    "overlap, unaligned": GroupLayout.overlapping(20, 12, 3, 9),
    "all see all but a few": GroupLayout.overlapping(16, 16, 2, 15),
    "random index of 16 in 64": random_index(64, 64, 8, 16),
    "random index of 7 in 21": random_index(21, 18, 3, 7, seed=1),
    "random index, wide": random_index(96, 32, 4, 48, seed=2),
}
"""Layouts that no `groups=` describes."""


def ragged_cases() -> Iterator[LayerCase]:
    """Every layout with kernels, strides, dtypes and memory formats in turn."""
    kernels = ((3, 3), (1, 1), (5, 3), (2, 2))
    for index, (name, layout) in enumerate(RAGGED.items()):
        kernel = kernels[index % 4]
        problem = ConvProblem(
            batch=1 + index % 2,
            layout=layout,
            in_size=(7 + index % 5, 11 - index % 4),
            kernel_size=kernel,
            stride=(1 + index % 2, 1 + index // 2 % 2),
            padding=(kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2),
            dtype=DTYPES[index % 3],
            input_channels_last=index % 4 != 3,
        )
        yield LayerCase("ragged", name, problem)
