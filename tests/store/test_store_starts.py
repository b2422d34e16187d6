"""Trials that started and never ended: whose they are, and what becomes of them."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from processes import run_python
from store_cases import CONV4, LARGE, SMALL
from store_cases import record as predicted

from grouped_conv.autotune.store.inflight import Owner, fate
from grouped_conv.autotune.store.store import Orphans, inflight

HERE = Owner.current()


@pytest.fixture(scope="module")
def dead():
    """A process of this boot that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = replace(HERE, pid=process.pid, born=inflight._born(process.pid))
        assert fate(owner) == "living"
    return owner


def test_what_became_of_a_process(dead):
    assert fate(HERE) == "living"
    assert fate(dead) == "gone"
    assert fate(replace(HERE, born="1")) == "gone"  # the same number, given to a process that began at another time
    assert fate(replace(HERE, boot="another")) == "rebooted"
    assert fate(replace(HERE, host="elsewhere", boot="another")) == "unseen"
    assert fate(replace(HERE, space="pid:[1]")) == "unseen"


def test_a_zombie_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = replace(HERE, pid=process.pid, born=inflight._born(process.pid))
        process.stdin.close()
        for _ in range(500):
            if fate(owner) == "gone":
                break
            time.sleep(0.01)
        assert process.returncode is None  # nobody has waited for it yet
        assert fate(owner) == "gone"


def test_a_trial_is_written_down_and_settled(kept):
    assert kept.start(CONV4, SMALL, "a100") == 1
    (row,) = kept.trials()
    assert (row.status, row.config, row.predicted_us) == ("started", SMALL, None)
    assert kept.best(CONV4, "a100") is None
    assert kept.settle_orphans() == Orphans((), 0)  # we are alive
    assert kept.start(CONV4, SMALL, "a100") == 1  # the same start, seen twice
    kept.put([predicted()])
    assert [row.status for row in kept.trials()] == ["predicted"]
    assert kept.start(CONV4, SMALL, "a100") == 1  # the last one ended


def test_what_is_known_holds_while_it_is_tried_again(kept):
    known = predicted(data={"weighed_us": 9.0})
    kept.put([known])
    kept.start(CONV4, SMALL, "a100")
    best = kept.best(CONV4, "a100")
    assert (best.status, best.predicted_us, best.data) == ("started", 10.0, known.data)
    wrong = predicted(LARGE).failed("wrong", "off by 2")
    kept.put([wrong])
    kept.start(CONV4, LARGE, "a100")
    assert kept.best(CONV4, "a100").config == SMALL  # a wrong one may not win by being tried again


def test_a_reboot_blames_the_configuration(kept):
    kept.put([predicted()])
    kept.start(CONV4, SMALL, "a100", replace(HERE, boot="before"))
    settled = kept.settle_orphans()
    (row,) = kept.trials()
    assert settled.crashed == (row,)
    assert (row.status, row.failure) == ("failed", "crashed")
    assert row.detail == f"implicit_gemm {SMALL}: the machine rebooted while it was tried"
    assert kept.best(CONV4, "a100") is None
    assert kept.settle_orphans().crashed == ()


@pytest.mark.parametrize("before", [[], [predicted(data={"weighed_us": 9.0})], [predicted().failed("wrong", "off")]])
def test_a_dead_process_is_forgotten_twice_and_believed_the_third_time(kept, dead, before):
    kept.put(before)
    for attempt in (1, 2):
        assert kept.start(CONV4, SMALL, "a100", dead) == attempt
        assert [row.status for row in kept.trials()] == ["started"]
        settled = kept.settle_orphans()
        assert (settled.crashed, settled.forgotten) == ((), 1)
        assert kept.trials() == before
        assert kept.settle_orphans().forgotten == 0
    assert kept.start(CONV4, SMALL, "a100", dead) == 3
    (crashed,) = kept.settle_orphans().crashed
    assert crashed.failure == "crashed"
    assert crashed.detail.endswith("three times in flight when its tuner ended")
    assert kept.trials() == [crashed]


def test_an_outcome_clears_the_count(kept, dead):
    for _ in range(4):
        for attempt in (1, 2):
            assert kept.start(CONV4, SMALL, "a100", dead) == attempt
            kept.settle_orphans()
        kept.start(CONV4, SMALL, "a100")
        kept.put([predicted()])
    assert kept.trials()[0].status == "predicted"


def test_starts_that_are_taken_over_without_being_settled_count(kept, dead):
    for attempt in (1, 2, 3):
        assert kept.start(CONV4, SMALL, "a100", replace(dead, born=str(attempt))) == attempt
    assert len(kept.settle_orphans().crashed) == 1


def test_others_that_live_or_cannot_be_seen_are_left_alone(kept, monkeypatch):
    elsewhere = replace(HERE, host="elsewhere", boot="another")
    container = replace(HERE, space="pid:[1]")
    for config, owner in ((SMALL, elsewhere), (LARGE, container)):
        kept.start(CONV4, config, "a100", owner)
    assert kept.settle_orphans().forgotten == 0
    assert [row.status for row in kept.trials()] == ["started"] * 2
    monkeypatch.setattr(inflight, "UNSEEN_SECONDS", -1.0)  # a day later
    assert kept.settle_orphans().forgotten == 2
    assert kept.trials() == []


def test_an_orderly_end_counts_nothing(kept, dead):
    kept.put([predicted(LARGE)])
    for _ in range(5):
        for config in (SMALL, LARGE):
            assert kept.start(CONV4, config, "a100") == 1
        kept.withdraw()
        assert kept.trials() == [predicted(LARGE)]
    kept.start(CONV4, SMALL, "a100", dead)
    kept.withdraw()  # another's start stays
    assert kept.settle_orphans().forgotten == 1


def test_a_killed_tuner_leaves_a_row_that_the_next_one_settles(kept):
    script = """
        import os, signal
        from store_cases import CONV4, SMALL
        from grouped_conv.autotune.store.store import Store
        Store().start(CONV4, SMALL, "a100")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run_python(script, status=-signal.SIGKILL)
    assert [row.status for row in kept.trials()] == ["started"]
    assert kept.settle_orphans().forgotten == 1
    assert kept.trials() == []
