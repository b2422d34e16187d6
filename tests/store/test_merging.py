"""Laws of merging and of what differs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import CONV4, LARGE, SMALL, measured, record, records

from grouped_conv.autotune.records.record import canonical
from grouped_conv.autotune.store.merging import Conflict, diff, merge
from grouped_conv.kernels import ABI_VERSION

SETS = st.lists(records(), max_size=8)


def texts(merged):
    """Everything about the records, `updated` too, which equality leaves out."""
    return [canonical(one.to_json()) for one in merged.records]


@given(SETS, SETS)
def test_commutative(one, other):
    assert texts(merge(one, other)) == texts(merge(other, one))


@given(SETS, SETS, SETS)
def test_associative(one, two, three):
    assert texts(merge(merge(one, two).records, three)) == texts(merge(one, merge(two, three).records))


@given(SETS)
def test_idempotent(one):
    once = merge(one, ())
    assert texts(merge(once.records, once.records)) == texts(once)
    assert merge(once.records, once.records).conflicts == ()


@given(SETS, SETS)
def test_every_trial_has_one_record_which_somebody_gave(one, other):
    merged = merge(one, other)
    assert [kept.key for kept in merged.records] == sorted({given.key for given in (*one, *other)})
    given_texts = [canonical(given.to_json()) for given in (*one, *other)]
    assert set(texts(merged)) <= set(given_texts)
    lost = {canonical(conflict.lost.to_json()) for conflict in merged.conflicts}
    assert lost == set(given_texts) - set(texts(merged))
    assert all(conflict.kept in merged.records for conflict in merged.conflicts)


ORDER = [
    measured().failed("wrong", "off by 2"),
    measured(samples=100, high_us=12.0, updated=1.0),
    measured(samples=20, high_us=11.0, updated=1.0),
    measured(samples=20, high_us=12.0, updated=3.0),
    measured(samples=20, high_us=12.0, updated=2.0),
    measured(samples=20, updated=4.0),
    record().failed("crashed", "the machine rebooted"),
    record(updated=2.0),
    record(data={"b": 1}, updated=1.0),
    record(data={"a": 1}, updated=1.0),
]
"""The best first; each pair tells one rule."""


@pytest.mark.parametrize("index", range(len(ORDER) - 1))
def test_the_order(index):
    better, worse = ORDER[index], ORDER[index + 1]
    for pair in ((better, worse), (worse, better)):
        merged = merge(pair[:1], pair[1:])
        assert texts(merged) == [canonical(better.to_json())]
        assert merged.conflicts == (Conflict(better, worse),)


def test_other_versions_and_devices_do_not_meet():
    rows = [
        measured(),
        measured(abi=ABI_VERSION + 1),
        measured(triton="3.0.0"),
        measured(device="h100-sxm"),
        measured(LARGE),
    ]
    assert len(merge(rows, rows[::-1]).records) == 5


def test_a_store_takes_records_in(kept):
    kept.put([record(), measured(LARGE, samples=20)])
    theirs = [measured(samples=5), measured(LARGE, samples=10), record(device="h100-sxm")]
    merged = kept.merge([*theirs, replace(record(device="l4"), status="started")])
    assert len(merged.records) == 3
    assert {(c.kept.samples, c.lost.samples) for c in merged.conflicts} == {(5, 0), (20, 10)}
    assert {(row.device, row.status, row.samples) for row in kept.trials()} == {
        ("a100", "measured", 5),
        ("a100", "measured", 20),
        ("h100-sxm", "predicted", 0),
    }
    assert kept.merge(theirs).records == merged.records


@given(SETS)
def test_a_set_does_not_differ_from_itself(one):
    assert diff(one, one[::-1]) == diff((), ()) == []


@given(SETS, SETS)
def test_differences_are_seen_from_both_sides(one, other):
    here, there = diff(one, other), diff(other, one)
    swap = {"only in one": "only in the other", "only in the other": "only in one"}
    assert [(d.kind, d.one, d.other) for d in here] == [(swap.get(d.kind, d.kind), d.other, d.one) for d in there]


def test_kinds_of_difference():
    batch = replace(CONV4, batch=64)
    one = [measured(), record(problem=batch), measured(device="l4"), measured(device="h200", us=10.0)]
    other = [
        measured(LARGE, us=5.0),
        measured(device="l4", us=11.0),
        record(device="a10"),
        measured(device="h200", us=10.05),
    ]
    found = {(d.record.device, d.record.problem.batch): d for d in diff(one, other)}
    assert {key: d.kind for key, d in found.items()} == {
        ("a100", 64): "only in one",
        ("a10", 128): "only in the other",
        ("a100", 128): "winner",
        ("l4", 128): "time",
    }
    assert (found["a100", 128].one.config, found["a100", 128].other.config) == (SMALL, LARGE)
    assert [d.kind for d in diff([record()], [measured(us=10.0)])] == ["time"]  # a prediction came true: still news
    assert [d.kind for d in diff([record().failed("wrong", "")], [record()])] == ["only in the other"]
