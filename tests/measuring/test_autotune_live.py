"""Live tuning on a measuring process without kernels: every kind of failure, what wins, what is written down."""

import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import fake_kernels
import pytest
from checkout import HELPERS
from processes import start_python

from grouped_conv.autotune.lookup.resolve import resolve
from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.report.tables import print_tuned
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.runner import Outcome, Trial
from grouped_conv.autotune.search.search import record_of
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.autotune.search.tuned_table import frame_of
from grouped_conv.autotune.search.tuner import tune_with
from grouped_conv.autotune.workers.measuring_process import MeasuringProcess
from grouped_conv.kernels import ConvProblem, ImplicitGemmConfig

CPU = native_lane.DEVICE
SMALL = ConvProblem.of((1, 64, 9, 9), (256, 32, 3, 3), padding=1, groups=2, dtype="float32", precision="ieee")
ALL = plan_effort("exhaustive", measures=True)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The fake job can be imported by worker processes."""
    monkeypatch.setenv("PYTHONPATH", HELPERS)


def fake_runner(**options):
    return LiveRunner(CPU, **{"function": fake_kernels.FUNCTION, "timeout": 1.0, **options})


def tune(kept, plan=ALL, problems=None, progress=None, **options):
    with fake_runner(**options) as runner:
        return tune_with(runner, problems or {"small": SMALL}, CPU, kept, plan, progress)


def test_every_failure_has_its_kind_and_the_rest_is_measured(kept):
    tune(kept)
    rows = {record.config: record for record in kept.trials()}
    assert rows.keys() == set(search_space(SMALL, CPU).configs)
    for config, row in rows.items():
        kind = fake_kernels.fate(config.to_json())
        expected = fake_kernels.FAILURES.get(kind, "wrong" if kind else None)
        assert row.failure == expected, config
        assert (row.status, row.device) == ("failed" if expected else "measured", "cpu-native")
        if expected is None:
            assert row.measured_us == fake_kernels.time_us(config.to_json())
            assert row.protocol == fake_kernels.PROTOCOL
        else:
            assert str(config) in row.detail
    seen = {row.failure for row in rows.values()} - {None}
    assert seen == {"wrong", "crashed", "timeout", "compile", "launch"}


def test_what_is_wrong_at_an_odd_shape_loses_to_the_next_best(kept):
    (row,) = frame_of([tune(kept)]).to_dict("records")
    liar = next(record for record in kept.trials() if fake_kernels.fate(record.config.to_json()) == "wrong when odd")
    assert (liar.failure, "N=3 " in liar.detail) == ("wrong", True)
    best = min(fake_kernels.time_us(config.to_json()) for config in good())
    assert (row["measured_us"], row["aten_us"], row["source"]) == (best, fake_kernels.ATEN_US, "measured")
    assert row["times_aten"] == pytest.approx(fake_kernels.ATEN_US / best)


def good():
    return [config for config in search_space(SMALL, CPU).configs if not fake_kernels.fate(config.to_json())]


def test_the_winner_can_be_trusted_by_a_look_up(kept):
    tune(kept)
    best = kept.best(SMALL, "cpu-native")
    assert (best.trusted, best.samples) == (True, 100)
    assert best.low_us <= best.measured_us <= best.high_us


def test_a_second_run_measures_nothing(kept, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv(fake_kernels.LOG, str(log))
    first = frame_of([tune(kept)])
    before = log.read_bytes()
    second = frame_of([tune(kept)])
    assert log.read_bytes() == before
    assert list(second["measured_now"]) == [0]
    assert first.drop(columns="measured_now").equals(second.drop(columns="measured_now"))


@pytest.mark.parametrize("function", ["hopeless", "hopeless_when_odd"])
def test_atens_time_is_known_where_nothing_else_can_be_used(kept, function, capsys):
    options = {"function": f"fake_kernels:{function}"}
    tuned = tune(kept, plan_effort("quick", measures=True, limit=3), **options)
    (row,) = frame_of([tuned]).to_dict("records")
    assert (row["source"], row["aten_us"], row["unusable"]) == ("aten", fake_kernels.ATEN_US, row["candidates"])
    print_tuned("it", [row])
    printed = capsys.readouterr().out
    assert f"PyTorch's own convolution, measured {fake_kernels.ATEN_US:.1f} us; all {row['unusable']} conf" in printed
    assert "hopeless" in printed
    for policy in ("measured", "predicted"):
        choice = resolve(SMALL, CPU, policy, kept, strict=True)  # tuned: there is nothing to tune any more
        assert (choice.path, choice.is_tuned) == ("aten", True)
        assert f"configurations that were tried failed, ATen took {fake_kernels.ATEN_US:.1f} us" in choice.reason
    (again,) = frame_of([tune(kept, plan_effort("quick", measures=True, limit=1), **options)]).to_dict("records")
    assert (again["source"], again["aten_us"]) == ("aten", fake_kernels.ATEN_US)


def test_atens_time_outlives_a_new_verdict_on_its_row(kept):
    failed = Outcome(Trial(SMALL, good()[0]), failure="resources", detail="spills")
    known = replace(record_of(failed, CPU, None), aten_us=50.0)
    assert record_of(failed, CPU, known).aten_us == 50.0


@pytest.mark.parametrize("strategy", ["local", "model", "random", "exhaustive"])
def test_a_limit_is_kept_by_every_strategy(kept, strategy):
    tune(kept, plan_effort("standard", measures=True, strategy=strategy, limit=6))
    assert len(kept.trials()) == 6


def test_ctrl_c_keeps_every_finished_trial_and_returns_the_best_so_far(kept):
    def stop(event):
        if event.done == 4:
            raise KeyboardInterrupt

    plan = plan_effort("standard", measures=True, strategy="model")
    tuned = tune(kept, plan, progress=stop)
    (row,) = frame_of([tuned]).to_dict("records")
    assert (tuned.interrupted, len(kept.trials())) == (True, 4)
    assert row["measured_us"] == min(record.measured_us for record in kept.trials() if record.measured_us)
    assert {record.status for record in kept.trials()} <= {"measured", "failed"}
    tune(kept)
    assert len(kept.trials()) == len(search_space(SMALL, CPU).configs)


def test_a_fault_of_ours_propagates_with_the_configurations_name():
    config = good()[0]
    fault = f"measuring {config.family} {config} of {re.escape(str(SMALL))} failed: KeyError"
    for job, message in (("no_such_job", "did not start"), ("broken", fault)):
        with fake_runner(function=f"fake_kernels:{job}") as runner, pytest.raises(RuntimeError, match=message):
            list(runner.measure([Trial(SMALL, config)], lambda trial: None))


def test_a_hung_job_costs_itself_only():
    with MeasuringProcess("time:sleep", 0.0, timeout=0.5) as process:
        began = time.monotonic()
        assert process.call(60).status == "timeout"
        assert time.monotonic() - began < 20
        assert process.call(0.01).status == "ok"
        assert process.restarts == 1


def test_a_dead_process_says_how_it_died():
    with MeasuringProcess("signal:raise_signal", 0) as process:
        answer = process.call(signal.SIGABRT)
    assert (answer.status, answer.detail) == ("crashed", "killed by SIGABRT")


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is noticed by a call of Linux")
def test_no_measuring_process_survives_its_parent():
    script = """
        from grouped_conv.autotune.workers.measuring_process import MeasuringProcess
        process = MeasuringProcess("time:sleep", 0.0)
        process.call(0.0)
        print(process._worker.process.pid, flush=True)
        process.call(60.0)
    """
    parent = start_python(script)
    worker = int(parent.stdout.readline())
    time.sleep(0.2)  # the worker sleeps now, and would for a minute
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(worker)


def _alive(pid):
    """Running, not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_space_holds_a_tile_that_the_native_lane_gets_wrong():
    known = ImplicitGemmConfig(block_m=32, block_n=128, block_k=16, num_warps=1, num_stages=1)
    assert known in search_space(SMALL, CPU).configs
    assert all(config.direction == "forward" for config in search_space(SMALL, CPU).configs)
    grad = replace(SMALL, direction="weight_grad")
    assert {config.direction for config in search_space(grad, CPU).configs} == {"weight_grad"}
