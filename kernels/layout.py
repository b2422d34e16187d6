"""Which input channels each group of output channels sees: the value `GroupLayout`.

Uniform groups are what `torch.nn.functional.conv2d` means by `groups`. The other constructors describe
unequal, overlapping and explicit layouts, so that problems of those kinds have one name everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Group:
    """One group: the input channels it reads, and how many output channels it makes."""

    inputs: tuple[int, ...]
    outputs: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """The groups of one size: they share one weight, `(len(groups) * outputs, inputs, R, S)`.

    Attributes:
        inputs, outputs: channels each group reads and makes.
        groups: their numbers in the layout, ascending.
    """

    inputs: int
    outputs: int
    groups: tuple[int, ...]

    @property
    def connections(self) -> int:
        """Pairs (input channel, output channel) of all its groups: weights per kernel tap."""
        return len(self.groups) * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Connections between the channel groups of a convolution.

    Attributes:
        in_channels: number of input channels.
        out_channels: number of output channels.
        groups: number of groups.
        ragged: `None` when all groups are equal and consecutive; otherwise one `Group` per group,
            output channels numbered consecutively in group order.
    """

    in_channels: int
    out_channels: int
    groups: int
    ragged: tuple[Group, ...] | None = None

    def __post_init__(self) -> None:
        _positive(in_channels=self.in_channels, out_channels=self.out_channels, groups=self.groups)
        if self.ragged is None:
            for name, value in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
                if value % self.groups:
                    raise ValueError(
                        f"{name} must be divisible by groups, but got {name}={value}, groups={self.groups}"
                    )
        else:
            self._check_ragged(self.ragged)

    def _check_ragged(self, ragged: tuple[Group, ...]) -> None:
        if len(ragged) != self.groups:
            raise ValueError(f"groups={self.groups}, but {len(ragged)} groups were described")
        for index, group in enumerate(ragged):
            if not group.inputs or group.outputs <= 0:
                raise ValueError(
                    f"group {index} has {len(group.inputs)} input and {group.outputs} output channels; "
                    "both must be positive"
                )
            outside = [c for c in group.inputs if not 0 <= c < self.in_channels]
            if outside:
                raise ValueError(f"group {index} reads input channels {outside[:4]}, outside 0..{self.in_channels - 1}")
            if len(set(group.inputs)) != len(group.inputs):
                raise ValueError(f"group {index} lists an input channel twice")
        total = sum(group.outputs for group in ragged)
        if total != self.out_channels:
            raise ValueError(f"the groups make {total} output channels, but out_channels={self.out_channels}")

    @classmethod
    def uniform(cls, in_channels: int, out_channels: int, groups: int = 1) -> GroupLayout:
        """Equal consecutive groups, as `torch.nn.Conv2d(in_channels, out_channels, ..., groups=groups)`."""
        return cls(in_channels, out_channels, groups)

    @classmethod
    def sizes(cls, in_sizes: Sequence[int], out_sizes: Sequence[int]) -> GroupLayout:
        """Consecutive groups of unequal sizes: group i maps `in_sizes[i]` channels to `out_sizes[i]`."""
        if len(in_sizes) != len(out_sizes) or not in_sizes:
            raise ValueError(
                f"need as many input as output sizes, at least one: got {len(in_sizes)} and {len(out_sizes)}"
            )
        for index, (size_in, size_out) in enumerate(zip(in_sizes, out_sizes, strict=True)):
            if size_in <= 0 or size_out <= 0:
                raise ValueError(f"group {index} has sizes {size_in} -> {size_out}; both must be positive")
        starts = [sum(in_sizes[:i]) for i in range(len(in_sizes))]
        channels = [range(start, start + size) for start, size in zip(starts, in_sizes, strict=True)]
        return cls._from_groups(sum(in_sizes), sum(out_sizes), channels, out_sizes)

    @classmethod
    def overlapping(cls, in_channels: int, out_channels: int, groups: int, width: int) -> GroupLayout:
        """Equal output groups that read `width` consecutive channels each, spread evenly from first to last.

        `width = in_channels / groups` gives no overlap; a larger one makes neighbours share channels.
        """
        _positive(in_channels=in_channels, out_channels=out_channels, groups=groups, width=width)
        if out_channels % groups:
            raise ValueError(
                f"out_channels must be divisible by groups, but got out_channels={out_channels}, groups={groups}"
            )
        if width > in_channels or groups * width < in_channels:
            raise ValueError(
                f"width={width} must be in {math.ceil(in_channels / groups)}..{in_channels} "
                f"for {groups} groups of {in_channels} channels"
            )
        last = in_channels - width
        starts = [round(g * last / (groups - 1)) if groups > 1 else 0 for g in range(groups)]
        channels = [range(start, start + width) for start in starts]
        return cls._from_groups(in_channels, out_channels, channels, [out_channels // groups] * groups)

    @classmethod
    def explicit(cls, in_channels: int, index: Sequence[Sequence[int]], out_sizes: Sequence[int]) -> GroupLayout:
        """Group g reads the input channels `index[g]` (any order) and makes `out_sizes[g]` output channels."""
        if len(index) != len(out_sizes):
            raise ValueError(f"{len(index)} channel lists for {len(out_sizes)} output sizes")
        return cls._from_groups(in_channels, sum(out_sizes), index, out_sizes)

    @classmethod
    def _from_groups(
        cls, in_channels: int, out_channels: int, channels: Iterable[Iterable[int]], out_sizes: Sequence[int]
    ) -> GroupLayout:
        ragged = tuple(Group(tuple(inputs), size) for inputs, size in zip(channels, out_sizes, strict=True))
        layout = cls(in_channels, out_channels, len(ragged), ragged)
        if in_channels % layout.groups or out_channels % layout.groups:
            return layout
        plain = cls.uniform(in_channels, out_channels, layout.groups)
        same = all(layout.inputs_of(g) == plain.inputs_of(g) for g in range(layout.groups))
        even = len({group.outputs for group in ragged}) == 1
        return plain if same and even else layout

    @property
    def is_uniform(self) -> bool:
        """True when all groups are equal and consecutive (what `groups=` means in PyTorch)."""
        return self.ragged is None

    @property
    def c_per_group(self) -> int:
        """Input channels per group; uniform layouts only."""
        self._need_uniform("c_per_group")
        return self.in_channels // self.groups

    @property
    def k_per_group(self) -> int:
        """Output channels per group; uniform layouts only."""
        self._need_uniform("k_per_group")
        return self.out_channels // self.groups

    def inputs_of(self, group: int) -> tuple[int, ...]:
        """Input channels that feed `group`, in the order its weights see them."""
        if not 0 <= group < self.groups:
            raise IndexError(f"group {group} is outside 0..{self.groups - 1}")
        if self.ragged is not None:
            return self.ragged[group].inputs
        size = self.in_channels // self.groups
        return tuple(range(group * size, (group + 1) * size))

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output channels of each group."""
        if self.ragged is None:
            return (self.out_channels // self.groups,) * self.groups
        return tuple(group.outputs for group in self.ragged)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The groups by their sizes, in the order in which each size first appears."""
        members: dict[tuple[int, int], list[int]] = {}
        for group, outputs in enumerate(self.outputs):
            members.setdefault((len(self.inputs_of(group)), outputs), []).append(group)
        return tuple(Bucket(inputs, outputs, tuple(groups)) for (inputs, outputs), groups in members.items())

    def connections(self) -> int:
        """Pairs (input channel, output channel) that are connected: weights per kernel tap."""
        if self.ragged is None:
            return self.in_channels // self.groups * self.out_channels
        return sum(len(group.inputs) * group.outputs for group in self.ragged)

    def _need_uniform(self, name: str) -> None:
        if self.ragged is not None:
            raise ValueError(
                f"{name} is one number only for equal groups; this layout has {self.groups} unequal or overlapping ones"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        data: dict[str, Any] = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "groups": self.groups,
        }
        if self.ragged is not None:
            data["ragged"] = [{"inputs": list(group.inputs), "outputs": group.outputs} for group in self.ragged]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GroupLayout:
        """The inverse of `to_json`."""
        rows = data.get("ragged")
        ragged = None if rows is None else tuple(Group(tuple(row["inputs"]), row["outputs"]) for row in rows)
        return cls(data["in_channels"], data["out_channels"], data["groups"], ragged)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ValueError(f"{name} must be a positive integer, but got {value!r}")
