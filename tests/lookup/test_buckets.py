"""Laws of the batch buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grouped_conv.autotune.lookup.buckets import bucket, distance

BATCHES = st.integers(0, 1 << 60)


@given(BATCHES)
def test_a_bucket_holds_its_batch_and_is_less_than_twice_as_large(batch):
    assert batch <= bucket(batch) < max(2 * batch, 1)


@given(BATCHES)
def test_idempotent(batch):
    assert bucket(bucket(batch)) == bucket(batch)


@given(BATCHES, BATCHES)
def test_monotone(one, other):
    low, high = sorted((one, other))
    assert bucket(low) <= bucket(high)


@given(st.integers(65, 1 << 60))
def test_large_batches_are_padded_by_half_at_most(batch):
    assert bucket(batch) <= 1.5 * batch


def test_the_buckets():
    wanted = [0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert sorted({bucket(batch) for batch in range(1025)}) == wanted
    assert all(bucket(size) == size for size in wanted)
    assert bucket(1025) == 1536
    with pytest.raises(ValueError, match="batch must not be negative, but got -1"):
        bucket(-1)


@given(BATCHES, BATCHES)
def test_distance_is_symmetric_and_zero_within_a_bucket(one, other):
    assert distance(one, other) == distance(other, one)
    assert (distance(one, other) == 0.0) == (bucket(one) == bucket(other))


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [(64, 128, True), (64, 33, True), (128, 65, True), (64, 129, False), (1, 2, True), (1, 4, False), (0, 1, False)],
)
def test_nearby_is_within_twice(one, other, near):
    assert (distance(one, other) is not None) == near
