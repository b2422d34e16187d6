"""A tuner that is killed at random moments and started again: nothing that was finished is repeated, nothing is lost.

The measuring job is fake: some tiles abort, crash, hang or give wrong results. Every execution leaves a line in a file.
"""

import json
import random
import subprocess
from collections import Counter
from pathlib import Path

import fake_kernels
import pytest
from checkout import HELPERS
from processes import start_python

from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.records.record import canonical
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.autotune.store.store import Store
from grouped_conv.kernels import ConvProblem

CPU = native_lane.DEVICE
PROBLEMS = {
    str(channels): ConvProblem.of((1, channels, 9, 9), (256, channels // 2, 3, 3), padding=1, groups=2, dtype="float32")
    for channels in (32, 64, 96, 128)
}
TUNE = """
    import json, sys
    from grouped_conv.autotune.model import native_lane
    from grouped_conv.autotune.search.efforts import plan_effort
    from grouped_conv.autotune.measuring.live_runner import LiveRunner
    from grouped_conv.autotune.store.store import Store
    from grouped_conv.autotune.search.tuner import tune_with
    from grouped_conv.kernels import ConvProblem
    path, function, problems = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    problems = {name: ConvProblem.from_json(data) for name, data in problems.items()}
    plan = plan_effort("exhaustive", measures=True)
    with LiveRunner(native_lane.DEVICE, function=function, timeout=0.6) as runner:
        print("begins", flush=True)
        tune_with(runner, problems, native_lane.DEVICE, Store(path), plan)
"""


def executions(log: Path) -> Counter[tuple[str, str]]:
    """First verifications by problem and configuration; later ones look at finalists again."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines() if log.exists() else ():
        layout, config, seed, batch = json.loads(line)
        if seed == 0 and batch == 1:
            counts[canonical(layout), canonical(config)] += 1
    return counts


def settled(path: Path) -> set[tuple[str, str]]:
    store = Store(path)
    rows = [record for record in store.trials() if record.status != "started"]
    store.close()
    return {key_of(record.problem, record.config) for record in rows}


def key_of(problem, config):
    return canonical(problem.to_json()["layout"]), canonical(config.to_json())


@pytest.mark.full
@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.sweep)])
def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path, monkeypatch, kills):
    path, log = tmp_path / "tuning.sqlite3", tmp_path / "log"
    monkeypatch.setenv("PYTHONPATH", HELPERS)
    monkeypatch.setenv(fake_kernels.LOG, str(log))
    draw = random.Random(20121)
    problems = {name: problem.to_json() for name, problem in PROBLEMS.items()}
    span = 0.15 if kills > 20 else 0.6  # so that the kills fall all over the search
    died = 0
    for round_ in range(kills + 1):
        before, done = executions(log), settled(path)
        tuner = start_python(TUNE, path, fake_kernels.FUNCTION, json.dumps(problems))
        assert tuner.stdout.readline() == "begins\n"
        try:
            tuner.wait(draw.uniform(0.3, 0.3 + span) if round_ < kills else 120)
        except subprocess.TimeoutExpired:
            died += 1
            tuner.kill()
        tuner.communicate()
        again = executions(log)
        repeated = {key for key in done if again[key] > before[key]}
        assert not repeated, f"after {round_} kills, finished trials ran again: {repeated}"
        assert done <= settled(path), "a finished trial was lost"
    assert tuner.returncode == 0
    assert died >= kills * 0.6
    check_rows(Store(path), executions(log))


def check_rows(store: Store, ran: Counter[tuple[str, str]]) -> None:
    """Every configuration has the outcome that the table of fates gives it; three unexplained deaths may blame one."""
    rows = {key_of(record.problem, record.config): record for record in store.trials()}
    wanted = {key_of(problem, config) for problem in PROBLEMS.values() for config in search_space(problem, CPU).configs}
    assert rows.keys() == wanted
    assert all(ran[key] >= 1 for key in wanted)
    for key, record in rows.items():
        config = record.config.to_json()
        kind = fake_kernels.fate(config)
        if kind == "wrong when odd":
            continue  # wrong only where it was about to win
        expected = fake_kernels.FAILURES.get(kind)
        if record.failure != expected:
            assert (record.failure, ran[key] >= 3) == ("crashed", True), record
        elif expected is None:
            assert record.measured_us == fake_kernels.time_us(config)
    for problem in PROBLEMS.values():
        best = store.best(problem, CPU.key)
        assert best is not None and best.aten_us == fake_kernels.ATEN_US
