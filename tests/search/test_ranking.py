"""Which trial wins: ties by confidence intervals, the cheaper of them first, whatever the order of the rows."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import LARGE, SMALL, measured, record

from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.records.ranking import pick
from grouped_conv.autotune.records.statistics import Median, may_be_fastest
from grouped_conv.autotune.search.runner import Trial
from grouped_conv.kernels import ConvProblem, ImplicitGemmConfig


def timed(us, low, high, config=SMALL, samples=100, **resources):
    data = {"resources": resources} if resources else {}
    return measured(config, us, low_us=low, high_us=high, samples=samples, data=data)


def winner(*records):
    found = {pick(list(order)) for order in itertools.permutations(records)}
    assert len(found) == 1
    return found.pop()


def test_overlapping_intervals_are_ties_and_fewer_registers_win():
    fast = timed(10.0, 9.8, 10.4, registers=128, shared_bytes=10)
    close = timed(10.3, 10.3, 10.9, LARGE, registers=64, shared_bytes=90)
    assert winner(fast, close) == close
    assert winner(fast, replace(close, low_us=10.41)) == fast  # 3 % apart, and surely so
    sharp = replace(fast, high_us=10.0), replace(close, measured_us=10.05, low_us=10.01)
    assert winner(*sharp) == sharp[0]  # half a percent, but surely


def test_then_shared_memory_then_warps_then_the_alphabet():
    fast = timed(10.0, 9.0, 11.0, LARGE, registers=64, shared_bytes=20)
    less = timed(10.5, 9.5, 11.5, SMALL, registers=64, shared_bytes=10)
    assert winner(fast, less) == less
    warps = [timed(us, 9.0, 11.0, replace(SMALL, num_warps=count)) for us, count in ((10.0, 8), (10.1, 4))]
    assert winner(*warps).config.num_warps == 4
    depths = [timed(us, 9.0, 11.0, replace(SMALL, split_k=count)) for us, count in ((10.0, 3), (10.1, 2))]
    assert winner(*depths).config.split_k == 2
    unknown = timed(10.0, 9.0, 11.0, LARGE)
    assert winner(unknown, less) == less  # who says what it takes is preferred


def test_a_wide_interval_of_few_samples_ties_with_nothing():
    sure = timed(10.0, 9.9, 10.1, samples=100, registers=200)
    noisy = timed(15.0, 9.0, 30.0, LARGE, samples=5, registers=32)
    assert winner(sure, noisy) == sure
    lucky = timed(9.5, 9.0, 30.0, LARGE, samples=5, registers=32)
    assert winner(sure, lucky) == sure
    assert winner(noisy) == noisy


def test_a_wide_interval_does_not_let_those_in_who_are_surely_slower_than_another():
    """Both overlap with the first, but the third is surely slower than the second."""
    rows = [timed(10.0, 9.0, 13.0, samples=20), timed(10.5, 10.4, 10.6, LARGE, registers=200)]
    slower = timed(11.0, 10.9, 11.1, replace(LARGE, num_warps=8), registers=32)
    assert winner(*rows, slower) == rows[1]


def test_times_without_an_interval_tie_within_one_percent():
    cheap = record(SMALL, 10.05, data={"resources": {"shared_bytes": 100}})
    fast = record(LARGE, 10.0, data={"resources": {"shared_bytes": 200}})
    assert winner(fast, cheap) == cheap
    assert winner(replace(fast, predicted_us=9.0), cheap).config == LARGE
    old = [measured(SMALL, 10.05), measured(LARGE, 10.0, data={"resources": {"registers": 40}})]
    assert winner(*old).config == LARGE
    assert winner(old[0], replace(old[1], measured_us=10.2)).config == SMALL


def test_failures_and_nothing():
    assert pick([]) is None
    assert pick([record(us=None).failed("compile", "no"), measured(us=9.0).failed("wrong", "off by 2")]) is None
    assert may_be_fastest([]) == []


@st.composite
def medians(draw):
    low, value, high = sorted(draw(st.lists(st.integers(1, 12), min_size=3, max_size=3)))
    return Median(value, low, high, draw(st.sampled_from([5, 20, 100])))


@given(st.lists(medians(), min_size=1, max_size=6))
def test_who_may_be_fastest(times):
    chosen = [times[place] for place in may_be_fastest(times)]
    bar = min(median.high for median in times)
    assert chosen
    assert all(median.low <= bar for median in chosen)
    assert any(median.high == bar for median in chosen)
    most = max(median.samples for median in times)
    if all(median.samples == most for median in times):
        fastest = min(times, key=lambda median: median.value)
        assert fastest in chosen
        assert all(median in chosen for median in times if median.low <= bar)


# ---- the live runner verifies again whatever may win by this rule

SMALL_PROBLEM = ConvProblem.of((1, 64, 9, 9), (256, 32, 3, 3), padding=1, groups=2, dtype="float32", precision="ieee")


class Answering(LiveRunner):
    """Times and faults from tables instead of a process.

    Args:
        times: by split, the samples that repeat.
        liars: splits that are wrong at an odd shape.
    """

    def __init__(self, times, liars=()):
        super().__init__(native_lane.DEVICE, function="nobody:calls")
        self.times, self.liars, self.verified = times, liars, []

    def _job(self, trial, job):
        split = getattr(trial.config, "split_k", 0)
        if job["op"] == "sample":
            samples = itertools.islice(itertools.cycle(self.times[split]), job["count"])
            return {"failure": None, "us": list(samples), "protocol": "fake"}
        self.verified.append(split)
        odd = job["problem"]["batch"] == 3
        return {"failure": "wrong" if odd and split in self.liars else None, "detail": "off"}


def confirmed(runner):
    config = ImplicitGemmConfig(block_m=32, block_n=32, block_k=16, num_warps=1)
    trials = [Trial(SMALL_PROBLEM, replace(config, split_k=split)) for split in runner.times if split]
    return {outcome.trial.config.split_k: outcome for outcome in runner.confirm(trials)}


ATEN = (50.0,)


def test_every_tie_is_verified_again_and_no_other():
    runner = Answering({0: ATEN, 1: (10.0, 12.0), 2: (11.0, 13.0), 3: (12.5, 14.0)})
    outcomes = confirmed(runner)
    assert set(runner.verified) == {1, 2}
    assert {split: outcome.us for split, outcome in outcomes.items()} == {1: 11.0, 2: 12.0, 3: 13.25}
    assert {outcome.aten_us for outcome in outcomes.values()} == {50.0}


@pytest.mark.parametrize("liars", [(1,), (1, 2), (1, 2, 3)])
def test_who_ties_after_a_fault_is_verified_too(liars):
    runner = Answering({0: ATEN, 1: (10.0,), 2: (11.0, 13.0), 3: (12.5, 14.0)}, liars)
    outcomes = confirmed(runner)
    assert {split for split, outcome in outcomes.items() if outcome.failure} == set(liars)
    standing = [outcome for outcome in outcomes.values() if outcome.failure is None]
    assert sorted(outcome.trial.config.split_k for outcome in standing) == sorted({1, 2, 3} - set(liars))
    if standing:
        assert min(standing, key=lambda outcome: outcome.us).trial.config.split_k in runner.verified
