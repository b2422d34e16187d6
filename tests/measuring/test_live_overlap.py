"""The first look at a batch begins while it still compiles: on a played clock, with kernels that are a table."""

from collections import Counter
from dataclasses import replace

import pytest

from grouped_conv.autotune.measuring.live_runner import FIRST, REST, LiveRunner
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.search.runner import Outcome, Trial
from grouped_conv.kernels import ConvProblem, DeviceSpec, ImplicitGemmConfig

PROBLEM = ConvProblem.of((8, 64, 14, 14), (64, 32, 3, 3), padding=1, groups=2)
TRIALS = [Trial(PROBLEM, ImplicitGemmConfig(block_m=64, block_n=32, block_k=32, split_k=1 + i)) for i in range(8)]
COMPILE_SECONDS, VERIFY_SECONDS = 3.0, 2.0


class Compiler:
    """One worker in the background; its outcomes are there `COMPILE_SECONDS` apart, the last trial's first."""

    def __init__(self, runner, fails=()):
        self.runner, self.fails, self.closed = runner, fails, False

    def measure(self, trials, starting):
        try:
            for number, trial in enumerate(trials[::-1], 1):
                self.runner.now = max(self.runner.now, number * COMPILE_SECONDS)
                failure = "compile" if trial.config.split_k in self.fails else None
                yield Outcome(trial, failure=failure, data={"resources": {"registers": trial.config.split_k}})
        finally:
            self.closed = True


class Played(LiveRunner):
    """Verifying takes its time, sampling none."""

    def __init__(self, device=DeviceSpec.get("h100"), fails=()):
        super().__init__(device, function="nobody:calls")
        self.now, self.log, self.samples = 0.0, [], Counter()
        if self._compiler is not None:
            self._compiler = Compiler(self, fails)

    def _job(self, trial, job):
        split = trial.config.split_k
        if job["op"] == "verify":
            self.log.append((self.now, split))
            self.now += VERIFY_SECONDS
            return {"failure": None}
        self.samples[split] += job["count"]
        return {"failure": None, "us": [10.0 + split / 10] * job["count"], "protocol": "fake"}


def test_kernels_are_verified_and_timed_as_they_become_ready():
    runner, started = Played(), []
    outcomes = list(runner.measure(TRIALS, started.append))
    assert runner.log == [(number * COMPILE_SECONDS, 9 - number) for number in range(1, 9)]
    assert runner.now == 8 * COMPILE_SECONDS + VERIFY_SECONDS  # 26 s, not 40
    assert [trial.config.split_k for trial in started] == [8, 7, 6, 5, 4, 3, 2, 1]
    final = {outcome.trial: outcome for outcome in outcomes}
    assert set(final) == set(TRIALS)
    assert all(final[trial].us == 10.0 + trial.config.split_k / 10 for trial in TRIALS)
    assert [outcome.data["resources"]["registers"] for outcome in outcomes[:8]] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_samples_taken_beside_compilers_do_not_count_in_the_race():
    runner = Played()
    last = {outcome.trial: outcome for outcome in runner.measure(TRIALS, lambda trial: None)}
    assert set(runner.samples.values()) == {FIRST.samples + REST[-1].samples}
    assert {outcome.samples for outcome in last.values()} == {REST[-1].samples}
    alone = Played(native_lane.DEVICE)  # nothing compiles beside it
    list(alone.measure(TRIALS, lambda trial: None))
    assert set(alone.samples.values()) == {REST[-1].samples}


def test_what_does_not_compile_is_reported_and_never_started():
    runner, started = Played(fails=(8, 3)), []
    outcomes = list(runner.measure(TRIALS, started.append))
    failed = {outcome.trial.config.split_k: outcome.failure for outcome in outcomes if outcome.failure}
    assert failed == {8: "compile", 3: "compile"}
    assert {trial.config.split_k for trial in started} == {1, 2, 4, 5, 6, 7}


def test_several_problems_follow_each_other():
    other = [replace(trial, problem=replace(PROBLEM, batch=4)) for trial in TRIALS[:2]]
    runner = Played()
    outcomes = list(runner.measure([*TRIALS[:2], *other], lambda trial: None))
    assert {outcome.trial for outcome in outcomes} == {*TRIALS[:2], *other}


def test_leaving_early_ends_the_compilers():
    runner = Played()
    outcomes = runner.measure(TRIALS, lambda trial: None)
    next(outcomes)
    outcomes.close()
    assert runner._compiler.closed


def test_a_fault_of_the_measuring_code_ends_the_compilers_too():
    runner = Played()
    runner._job = lambda trial, job: pytest.fail("a fault")
    with pytest.raises(pytest.fail.Exception):
        list(runner.measure(TRIALS, lambda trial: None))
    assert runner._compiler.closed
