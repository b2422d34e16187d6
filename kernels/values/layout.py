"""Which input channels each group of output channels sees: the value `GroupLayout`.

Uniform groups are what `torch.nn.functional.conv2d` means by `groups`. The other constructors describe
unequal, overlapping and explicit layouts, so that problems of those kinds have one name everywhere. An input channel
that no group reads is refused, naming the groups around it, unless `explicit` is told that it is meant.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
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
            _check_group(index, group, self.in_channels)
        total = sum(group.outputs for group in ragged)
        if total != self.out_channels:
            raise ValueError(f"the groups make {total} output channels, but out_channels={self.out_channels}")

    @classmethod
    def uniform(cls, in_channels: int, out_channels: int, groups: int = 1) -> GroupLayout:
        """Equal consecutive groups, as `torch.nn.Conv2d(in_channels, out_channels, ..., groups=groups)`."""
        return cls(in_channels, out_channels, groups)

    @classmethod
    def sizes(
        cls,
        in_sizes: Sequence[int],
        out_sizes: Sequence[int],
        *,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> GroupLayout:
        """Consecutive groups of unequal sizes: group i maps `in_sizes[i]` channels to `out_sizes[i]`.

        Args:
            in_channels, out_channels: what the sizes must add up to, if given.

        Raises:
            ValueError: for sizes that are not positive, naming the group, and for sizes that do not add up.
        """
        if len(in_sizes) != len(out_sizes) or not in_sizes:
            raise ValueError(
                f"need as many input as output sizes, at least one: got {len(in_sizes)} and {len(out_sizes)}"
            )
        for index, (size_in, size_out) in enumerate(zip(in_sizes, out_sizes, strict=True)):
            if not (_is_positive(size_in) and _is_positive(size_out)):
                raise ValueError(f"group {index} has sizes {size_in} -> {size_out}; both must be positive integers")
        for name, sizes, total in (("in", in_sizes, in_channels), ("out", out_sizes, out_channels)):
            if total is not None and sum(sizes) != total:
                raise ValueError(_does_not_add_up(name, sizes, total))
        starts = [sum(in_sizes[:i]) for i in range(len(in_sizes))]
        channels = [range(start, start + size) for start, size in zip(starts, in_sizes, strict=True)]
        return cls._from_groups(sum(in_sizes), sum(out_sizes), channels, out_sizes)

    @classmethod
    def log_series(cls, in_channels: int, out_channels: int, groups: int) -> GroupLayout:
        """Group sizes that halve, the last one twice: c/2, c/4, c/8, c/8 for four groups (arXiv 1707.09855).

        Raises:
            ValueError: when a channel count cannot be halved `groups - 1` times.
        """
        _positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        halvings = groups - 1
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % 2**halvings:
                raise ValueError(
                    f"{groups} groups of a logarithmic series need {name} divisible by {2**halvings}, "
                    f"but got {name}={channels}"
                )
        powers = [*range(1, groups), halvings]
        return cls.sizes([in_channels >> power for power in powers], [out_channels >> power for power in powers])

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
    def explicit(
        cls,
        in_channels: int,
        index: Sequence[Sequence[int]],
        out_sizes: int | Sequence[int],
        *,
        allow_unread: bool = False,
    ) -> GroupLayout:
        """Group g reads the input channels `index[g]` (any order) and makes `out_sizes[g]` output channels.

        Args:
            index: channel lists, one per group, of any lengths; also an integer table `[groups, channels]`.
            out_sizes: one per group, or one number for all.
            allow_unread: some input channels may be read by no group (pruned or dropped ones).

        Raises:
            ValueError: naming the group, for channels out of range or listed twice, for empty groups, and for channels
                that no group reads.
        """
        _positive(in_channels=in_channels)
        lists: list[list[int]] = [row.tolist() if hasattr(row, "tolist") else list(row) for row in index]
        outputs = [out_sizes] * len(lists) if isinstance(out_sizes, int) else list(out_sizes)
        if len(lists) != len(outputs) or not lists:
            raise ValueError(f"{len(lists)} channel lists for {len(outputs)} output sizes; at least one is needed")
        for group, (inputs, size) in enumerate(zip(lists, outputs, strict=True)):
            _check_group(group, Group(tuple(inputs), size), in_channels)
        layout = cls._from_groups(in_channels, sum(outputs), lists, outputs)
        if layout.unread and not allow_unread:
            raise ValueError(_gap(layout))
        return layout

    @classmethod
    def random_sparse(cls, in_channels: int, out_channels: int, groups: int, width: int, seed: int = 0) -> GroupLayout:
        """Equal output groups that read `width` random channels each, as cuda-convnet's `randSparse`.

        Random permutations of the input channels are laid end to end and cut into groups, so that every channel is read
        by exactly `groups * width / in_channels` of them. Each group's channels are ascending.

        Raises:
            ValueError: when `groups * width` is not a multiple of `in_channels`, or a group cannot be filled.
        """
        _positive(in_channels=in_channels, out_channels=out_channels, groups=groups, width=width)
        if out_channels % groups:
            raise ValueError(
                f"out_channels must be divisible by groups, but got out_channels={out_channels}, groups={groups}"
            )
        if width > in_channels or groups * width % in_channels:
            raise ValueError(
                f"{groups} groups of width={width} read {groups * width} channels, which must be a multiple of "
                f"in_channels={in_channels}, and no group more than all of them"
            )
        draw = random.Random(seed)
        order: list[int] = []
        while len(order) < groups * width:
            begun = set(order[len(order) - len(order) % width :])  # a group that the last permutation left unfinished
            permutation = draw.sample(range(in_channels), in_channels)
            order += sorted(permutation, key=begun.__contains__)  # stable: what the group already has comes last
        index = [sorted(order[group * width : (group + 1) * width]) for group in range(groups)]
        return cls.explicit(in_channels, index, out_channels // groups)

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

    @property
    def unread(self) -> tuple[int, ...]:
        """Input channels that no group reads."""
        if self.ragged is None:
            return ()
        read = {channel for group in self.ragged for channel in group.inputs}
        return tuple(channel for channel in range(self.in_channels) if channel not in read)

    def __str__(self) -> str:
        """`96 -> 128 in 3 groups: 48 -> 64, 2 x 24 -> 32`, with `overlapping` or `listed` where they are."""
        sizes = [(len(self.inputs_of(group)), outputs) for group, outputs in enumerate(self.outputs)]
        words = []
        for (inputs, outputs), members in groupby(sizes):
            count = len(list(members))
            words.append(f"{count} x {inputs} -> {outputs}" if count > 1 else f"{inputs} -> {outputs}")
        total = sum(inputs for inputs, _ in sizes)
        overlap = total + len(self.unread) > self.in_channels
        listed = self.ragged is not None and not all(
            group.inputs == tuple(range(group.inputs[0], group.inputs[0] + len(group.inputs))) for group in self.ragged
        )
        kind = [
            word
            for word, true in (("overlapping", overlap), ("listed", listed), ("unread channels", self.unread))
            if true
        ]
        text = f"{self.in_channels} -> {self.out_channels} in {self.groups} groups: {', '.join(words)}"
        return text + (f" ({', '.join(kind)})" if kind else "")

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


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _positive(**values: int) -> None:
    for name, value in values.items():
        if not _is_positive(value):
            raise ValueError(f"{name} must be a positive integer, but got {value!r}")


def _check_group(index: int, group: Group, in_channels: int) -> None:
    if not group.inputs or not _is_positive(group.outputs):
        raise ValueError(
            f"group {index} has {len(group.inputs)} input and {group.outputs} output channels; both must be positive"
        )
    odd = [channel for channel in group.inputs if not isinstance(channel, int) or isinstance(channel, bool)]
    if odd:
        raise ValueError(f"group {index} lists {odd[0]!r} among its input channels, which is no integer")
    outside = [channel for channel in group.inputs if not 0 <= channel < in_channels]
    if outside:
        raise ValueError(f"group {index} reads input channels {outside[:4]}, outside 0..{in_channels - 1}")
    if len(set(group.inputs)) != len(group.inputs):
        twice = next(channel for channel in group.inputs if group.inputs.count(channel) > 1)
        raise ValueError(f"group {index} lists an input channel twice: {twice}")


def _does_not_add_up(name: str, sizes: Sequence[int], total: int) -> str:
    """Which group the sum leaves the channels in, or what is missing after the last one."""
    end = 0
    for index, size in enumerate(sizes):
        if end + size > total:
            where = f"group {index} would be channels {end}..{end + size - 1}"
            break
        end += size
    else:
        where = f"group {len(sizes) - 1} ends at channel {end - 1}"
    sums = " + ".join(map(str, sizes))
    return f"the {name}put sizes {sums} = {sum(sizes)} do not add up to {name}_channels={total}: {where}"


def _gap(layout: GroupLayout) -> str:
    """The error message for input channels that no group reads, with the groups on either side of the first of them."""
    first = layout.unread[0]
    ends = [(max(c for c in layout.inputs_of(g) if c < first), g) for g in _reading(layout, range(first))]
    last = next((c for c in range(first, layout.in_channels) if c not in layout.unread), layout.in_channels)
    begins = _reading(layout, range(last, last + 1))
    before = f"after channel {max(ends)[0]} of group {max(ends)[1]}" if ends else "at the start"
    after = f"before channel {last} of group {begins[0]}" if begins else "to the end"
    return (
        f"input channels {list(layout.unread[:8])} are read by no group: a gap {before}, {after} "
        f"({len(layout.unread)} of in_channels={layout.in_channels}); allow_unread=True accepts that"
    )


def _reading(layout: GroupLayout, channels: range) -> list[int]:
    """The groups that read any of `channels`."""
    wanted = set(channels)
    return [group for group in range(layout.groups) if wanted & set(layout.inputs_of(group))]
