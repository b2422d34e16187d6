"""Layouts of unequal groups: what they say, what they refuse and in which words; the kernel's tables."""

import json
from collections import Counter

import numpy as np
import pytest
from ragged_cases import LAYOUTS
from ragged_oracle import ragged_problem

from grouped_conv.call_values.layout_text import read_layout, write_layout
from grouped_conv.kernels import ConvProblem, GroupLayout, KernelConfig
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.ragged.forward_rules import (
    MAX_ALIGN,
    RaggedConfig,
    bucket_offsets,
    channel_index,
    last_tap,
    reciprocal,
    tile_table,
    traits,
    trips,
    weight_elements,
    weight_offsets,
)
from grouped_conv.kernels.values.layout import Bucket, Group

BAD = [
    # sizes
    (lambda: GroupLayout.sizes([], []), "at least one: got 0 and 0"),
    (lambda: GroupLayout.sizes([4, 2], [1]), "as many input as output sizes, at least one: got 2 and 1"),
    (lambda: GroupLayout.sizes([4, 0], [1, 1]), "group 1 has sizes 0 -> 1; both must be positive integers"),
    (lambda: GroupLayout.sizes([4, 2], [1, -3]), "group 1 has sizes 2 -> -3; both must be positive integers"),
    (lambda: GroupLayout.sizes([4, 2.0], [1, 1]), "group 1 has sizes 2.0 -> 1"),  # type: ignore[list-item]
    (lambda: GroupLayout.sizes([4, True], [1, 1]), "group 1 has sizes True -> 1"),
    (lambda: GroupLayout.sizes([4, 2, 1], [1, 1, 1], in_channels=8),
     r"input sizes 4 \+ 2 \+ 1 = 7 do not add up to in_channels=8: group 2 ends at channel 6"),
    (lambda: GroupLayout.sizes([4, 6, 1], [1, 1, 1], in_channels=8),
     r"4 \+ 6 \+ 1 = 11 do not add up to in_channels=8: group 1 would be channels 4..9"),
    (lambda: GroupLayout.sizes([4, 2], [3, 3], out_channels=7),
     r"output sizes 3 \+ 3 = 6 do not add up to out_channels=7: group 1 ends at channel 5"),
    # explicit lists
    (lambda: GroupLayout.explicit(4, [], []), "0 channel lists for 0 output sizes; at least one is needed"),
    (lambda: GroupLayout.explicit(4, [[0, 1], [2, 3]], [1]), "2 channel lists for 1 output sizes"),
    (lambda: GroupLayout.explicit(4, [[0, 1, 2, 3], []], [1, 1]), "group 1 has 0 input and 1 output channels"),
    (lambda: GroupLayout.explicit(4, [[0, 1], [2, 3]], [1, 0]), "group 1 has 2 input and 0 output channels"),
    (lambda: GroupLayout.explicit(4, [[0, 1], [2, 4]], 1), r"group 1 reads input channels \[4\], outside 0..3"),
    (lambda: GroupLayout.explicit(4, [[0, -1], [2, 3]], 1), r"group 0 reads input channels \[-1\], outside 0..3"),
    (lambda: GroupLayout.explicit(4, [[0, 1], [2, 3, 2]], 1), "group 1 lists an input channel twice: 2"),
    (lambda: GroupLayout.explicit(4, [[0, 1.5], [2, 3]], 1), "group 0 lists 1.5 among its input channels"),  # type: ignore[list-item]
    (lambda: GroupLayout.explicit(0, [[0]], 1), "in_channels must be a positive integer, but got 0"),
    # gaps
    (lambda: GroupLayout.explicit(8, [[0, 1], [4, 5, 6, 7]], 2),
     r"channels \[2, 3\] are read by no group: a gap after channel 1 of group 0, before channel 4 of group 1 \(2 of"),
    (lambda: GroupLayout.explicit(4, [[1, 2], [3]], 2), r"\[0\] are read by no group: a gap at the start, before"),
    (lambda: GroupLayout.explicit(9, [[0, 1], [2, 3]], 2), "a gap after channel 3 of group 1, to the end .5 of"),
    (lambda: GroupLayout.overlapping(8, 4, 2, 3), r"width=3 must be in 4..8 for 2 groups of 8 channels"),
    # handy series
    (lambda: GroupLayout.log_series(12, 16, 4), "need in_channels divisible by 8, but got in_channels=12"),
    (lambda: GroupLayout.log_series(16, 12, 4), "need out_channels divisible by 8, but got out_channels=12"),
    (lambda: GroupLayout.random_sparse(12, 8, 4, 5), "4 groups of width=5 read 20 channels, .* in_channels=12"),
    (lambda: GroupLayout.random_sparse(4, 8, 4, 8), "no group more than all of them"),
    (lambda: GroupLayout.random_sparse(12, 9, 4, 6), "out_channels=9, groups=4"),
    # the value itself
    (lambda: GroupLayout(4, 2, 2, (Group((0, 1, 2, 3), 2),)), "groups=2, but 1 groups were described"),
    (lambda: GroupLayout(4, 3, 1, (Group((0, 1, 2, 3), 2),)), "make 2 output channels, but out_channels=3"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_layouts_name_the_group_and_the_numbers(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unread_channel_is_accepted_where_it_is_meant() -> None:
    layout = GroupLayout.explicit(8, [[0, 1], [4, 5]], 2, allow_unread=True)
    assert layout.unread == (2, 3, 6, 7)
    assert GroupLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    assert str(layout) == "8 -> 4 in 2 groups: 2 x 2 -> 2 (unread channels)"
    assert GroupLayout.uniform(4, 4, 2).unread == ()


def test_logarithmic_series_halve_and_repeat_the_last() -> None:
    layout = GroupLayout.log_series(64, 128, 4)
    assert [len(layout.inputs_of(g)) for g in range(4)] == [32, 16, 8, 8]
    assert layout.outputs == (64, 32, 16, 16)
    assert layout.unread == ()
    assert GroupLayout.log_series(8, 4, 1) == GroupLayout.uniform(8, 4)
    assert GroupLayout.log_series(8, 4, 2) == GroupLayout.uniform(8, 4, 2)


@pytest.mark.parametrize(("channels", "groups", "width"), [(12, 4, 6), (10, 5, 4), (7, 7, 5), (9, 9, 9), (16, 4, 4)])
def test_random_sparse_reads_each_channel_equally_often_and_none_twice(channels: int, groups: int, width: int) -> None:
    for seed in range(20):
        layout = GroupLayout.random_sparse(channels, 2 * groups, groups, width, seed)
        lists = [layout.inputs_of(group) for group in range(groups)]
        assert all(list(inputs) == sorted(set(inputs)) and len(inputs) == width for inputs in lists)
        counts = Counter(channel for inputs in lists for channel in inputs)
        assert set(counts.values()) == {groups * width // channels}
        assert len(counts) == channels
        assert layout == GroupLayout.random_sparse(channels, 2 * groups, groups, width, seed)


def test_tables_of_numbers_are_channel_lists_too() -> None:
    table = np.array([[0, 3], [2, 1]])
    layout = GroupLayout.explicit(4, table, 3)  # type: ignore[arg-type]
    assert layout == GroupLayout.explicit(4, [[0, 3], [2, 1]], [3, 3])


def test_buckets_are_the_sizes_in_order_of_appearance() -> None:
    layout = GroupLayout.sizes([4, 2, 4, 4], [8, 3, 8, 2])
    assert layout.buckets == (Bucket(4, 8, (0, 2)), Bucket(2, 3, (1,)), Bucket(4, 2, (3,)))
    assert sum(bucket.connections for bucket in layout.buckets) == layout.connections()
    assert GroupLayout.uniform(8, 4, 2).buckets == (Bucket(4, 2, (0, 1)),)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_text_and_back(layout: GroupLayout) -> None:
    assert read_layout(write_layout(layout)) == layout


def test_text_is_short_and_bad_text_is_refused() -> None:
    layout = GroupLayout.explicit(50, [range(32), [40, 33, 34], range(35, 40)], [64, 8, 1], allow_unread=True)
    assert write_layout(layout) == "50;0-31>64;40,33-34>8;35-39>1"
    for text in ("", "8", "8;0-3", "8;a>2", "8;0-3>2;9>1"):
        with pytest.raises(ValueError, match=r"layout|outside|positive"):
            read_layout(text)


def test_layouts_are_readable() -> None:
    assert str(LAYOUTS["log series, alignment 8"]) == "64 -> 64 in 4 groups: 32 -> 32, 16 -> 16, 2 x 8 -> 8"
    assert str(LAYOUTS["random lists"]) == "24 -> 32 in 4 groups: 4 x 12 -> 8 (overlapping, listed)"
    assert "ragged(64 -> 64 in 4 groups" in str(ragged_problem(LAYOUTS["log series, alignment 8"]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log series, alignment 8", (False, 8, 8, 8)),
        ("alignment 4", (False, 4, 4, 8)),
        ("odd sizes, alignment 1", (False, 1, 1, 1)),
        ("overlap, starts not aligned, widths are", (False, 1, 8, 8)),
        ("random lists", (True, 1, 4, 8)),
        ("lists of aligned runs of 8", (True, 8, 8, 8)),
        ("lists backwards", (True, 1, 1, 2)),
    ],
)
def test_alignment(name: str, expected: tuple[bool, int, int, int]) -> None:
    known = traits(LAYOUTS[name])
    assert (known.gather, known.in_align, known.width_align, known.out_align) == expected


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_table_covers_every_output_once_deep_groups_first(layout: GroupLayout) -> None:
    problem, config = ragged_problem(layout), RaggedConfig(block_m=16, block_n=16, block_k=16)
    rows = tile_table(problem, config)
    made = [channel for row in rows for channel in range(row[3], row[3] + row[4])]
    assert sorted(made) == list(range(layout.out_channels))
    assert list(rows[:, 1]) == sorted(rows[:, 1], reverse=True)
    owner = np.repeat(np.arange(layout.groups), layout.outputs)
    starts, offsets = np.cumsum([0, *layout.outputs]), weight_offsets(layout, problem.taps)
    known = traits(layout)
    for begin, width, _, first_out, count, weight in rows.tolist():
        group = owner[first_out]
        inputs = layout.inputs_of(int(group))
        listed = channel_index(layout)[begin : begin + width] if known.gather else range(begin, begin + width)
        assert tuple(listed) == inputs
        assert weight == offsets[group] + (first_out - starts[group]) * problem.taps * width
        assert weight + count * problem.taps * width <= weight_elements(layout, problem.taps)
        assert weight % known.width_align == first_out % known.out_align == count % known.out_align == 0


def test_buckets_begin_at_16_bytes_and_groups_follow_each_other() -> None:
    layout = GroupLayout.sizes([3, 1, 3], [5, 2, 5])
    assert bucket_offsets(layout, 9) == [0, 272]  # 2 * 5 * 9 * 3 = 270, rounded up
    assert weight_offsets(layout, 9) == [0, 272, 135]
    assert weight_elements(layout, 9) == 272 + 24
    assert all(offset % MAX_ALIGN == 0 for offset in bucket_offsets(layout, 9))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 24, 48, 100, 511, 4096])
def test_reciprocals_divide_exactly(width: int) -> None:
    most = min(2**31 // width - 1, 2**22)
    k = np.unique(np.concatenate([np.arange(0, 4096), np.arange(most - 4096, most), np.arange(0, most, 997)]))
    k = k[(k >= 0) & (k <= most)].astype(np.uint64)
    assert ((2 * k * reciprocal(width) >> 32) == k // width).all()


def test_last_tap_counts_the_blocks_that_the_pipeline_prepares() -> None:
    problem, config = ragged_problem(GroupLayout.sizes([1, 8], [1, 1])), RaggedConfig(block_k=32, num_stages=3)
    assert last_tap(problem, config, prepared=False) == 31  # nine taps of one channel in one block of 32
    assert last_tap(problem, config, prepared=True) == 31 + 64
    assert [trips(problem, config, group) for group in (0, 1)] == [1, 3]


def test_configurations_that_cannot_run_say_why() -> None:
    config = RaggedConfig()
    uniform = ConvProblem.of((1, 8, 4, 4), (8, 4, 3, 3), groups=2)
    assert "equal and consecutive" in str(why_invalid(uniform, config))
    ragged = ragged_problem(LAYOUTS["alignment 4"])
    assert why_invalid(ragged, config) is None
    deep = ragged_problem(GroupLayout.sizes([2**15, 1], [1, 1]), (3, 3))
    assert "group 0: 9 taps of 32768 channels are too deep" in str(why_invalid(deep, config))


def test_config_to_json_and_back() -> None:
    config = RaggedConfig(block_m=64, block_n=32, block_k=16, num_warps=8, num_stages=3, cache_a=".ca")
    assert KernelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert str(config) == "64x32x16 w8 s3 .ca"
    for wrong in ({"block_m": 48}, {"block_k": 8}, {"cache_a": ".xx"}, {"num_warps": 3}):
        with pytest.raises(ValueError):
            RaggedConfig(**wrong)  # type: ignore[arg-type]
