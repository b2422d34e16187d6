"""Worker processes: results, failures of every kind, time-outs that kill, nothing left behind."""

import os
import signal
import time

import pytest
from processes import run_python, start_python

from grouped_conv.autotune.workers import pool as workers
from grouped_conv.autotune.workers.pool import WorkerPool


def run(function, payloads, **options):
    with WorkerPool(function, **options) as pool:
        return {outcome.index: outcome for outcome in pool.run(payloads)}


def test_results_and_errors():
    outcomes = run("math:sqrt", [4, -1, 9], jobs=2)
    assert {index: outcome.status for index, outcome in outcomes.items()} == {0: "ok", 1: "error", 2: "ok"}
    assert (outcomes[0].value, outcomes[2].value) == (2.0, 3.0)
    assert outcomes[1].detail.startswith("ValueError: ")


def test_workers_go_on_while_an_outcome_is_looked_at():
    with WorkerPool("time:sleep", jobs=1, timeout=60) as pool:
        outcomes = pool.run([0.01, 0.4, 0.01])
        assert next(outcomes).index == 0
        time.sleep(1.0)
        began = time.monotonic()
        slow = next(outcomes)
        assert (slow.index, time.monotonic() - began < 0.3) == (1, True)
        assert 0.4 <= slow.seconds < 0.8  # what the job took, not how long its outcome lay there
        assert next(outcomes).index == 2


def test_a_job_over_time_is_killed_and_the_rest_goes_on():
    began = time.monotonic()
    outcomes = run("time:sleep", [60, 0.01, 0.01, 0.01], jobs=1, timeout=1.0)
    assert time.monotonic() - began < 20
    assert outcomes[0].status == "timeout"
    assert outcomes[0].detail == "no result within 1 s"
    assert [outcomes[index].status for index in (1, 2, 3)] == ["ok"] * 3


def test_a_worker_that_dies_costs_its_job_only():
    outcomes = run("os:_exit", [3, 0], jobs=1)
    assert [outcomes[index].detail for index in (0, 1)] == ["exit code 3", "exit code 0"]
    (outcome,) = run("signal:raise_signal", [signal.SIGABRT], jobs=1).values()
    assert (outcome.status, outcome.detail) == ("crashed", "killed by SIGABRT")


def test_what_a_job_prints_does_not_disturb():
    (outcome,) = run("builtins:print", ["noise"], jobs=1).values()
    assert outcome.status == "ok"


def test_no_process_survives_the_pool():
    with WorkerPool("time:sleep", jobs=2, timeout=60) as pool:
        outcomes = pool.run([0.01, 60, 60])
        next(outcomes)
        processes = [worker.process for worker in pool._workers]
        assert all(process.poll() is None for process in processes)
    assert all(process.poll() is not None for process in processes)


def test_a_worker_that_cannot_start_is_an_error():
    with pytest.raises(RuntimeError, match="did not start: exit code 1: ModuleNotFoundError"):
        run("no_such_module:function", [1], jobs=1)


def test_ctrl_c_ends_the_workers():
    script = """
        import signal
        from grouped_conv.autotune.workers.pool import WorkerPool
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
        with WorkerPool("time:sleep", jobs=2, timeout=60) as pool:
            outcomes = pool.run([0.01, 60, 60])
            next(outcomes)
            print(*(worker.process.pid for worker in pool._workers), flush=True)
            next(outcomes)
    """
    parent = start_python(script)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_need_no_torch():
    code = "import sys; from grouped_conv.autotune.compiling import compile_job; print('torch' in sys.modules)"
    assert run_python(code) == "False\n"


def test_number_of_workers(monkeypatch):
    assert 1 <= workers.default_jobs() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(workers, "WORKER_BYTES", 1 << 60)
    assert workers.default_jobs() == 1
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool("math:sqrt", jobs=0)
