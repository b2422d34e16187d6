"""A `GroupLayout` as a line of text, which is how torch's operators can carry it, and back.

`64;0-31>64;32-47>32;48,50>8`: the number of input channels, then for each group the channels it reads, runs of
consecutive ones shortened, and how many it makes.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

from grouped_conv.kernels.values.layout import Group, GroupLayout


def write_layout(layout: GroupLayout) -> str:
    """The text of a layout."""
    words = [str(layout.in_channels)]
    words += [f"{_runs(layout.inputs_of(group))}>{outputs}" for group, outputs in enumerate(layout.outputs)]
    return ";".join(words)


known_text = lru_cache(maxsize=1024)(write_layout)
"""`write_layout`, remembered."""


@lru_cache(maxsize=1024)
def read_layout(text: str) -> GroupLayout:
    """The layout that `write_layout` wrote.

    Raises:
        ValueError: when the text is none, or its groups are no layout.
    """
    try:
        channels, *words = text.split(";")
        groups = []
        for word in words:
            runs, outputs = word.split(">")
            groups.append(Group(tuple(c for run in runs.split(",") for c in _channels(run)), int(outputs)))
        in_channels = int(channels)
    except ValueError as error:
        raise ValueError(f"{text!r} is no layout: expected channels;first-last,channel>outputs;...") from error
    return GroupLayout(in_channels, sum(group.outputs for group in groups), len(groups), tuple(groups))


def _runs(channels: tuple[int, ...]) -> str:
    words = []
    for _, members in groupby(enumerate(channels), key=lambda pair: pair[1] - pair[0]):
        run = [channel for _, channel in members]
        words.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(words)


def _channels(run: str) -> range:
    first, _, last = run.partition("-")
    return range(int(first), int(last or first) + 1)
