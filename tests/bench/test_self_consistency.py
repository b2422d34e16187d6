"""The model's first configurations against an exhaustive offline search: what is compared, and what it is called."""

import json

import pytest
from click.testing import CliRunner
from fake_compiler import compiled_to, compiling

from grouped_conv.autotune.search.recording import Recording
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.bench import regret, self_consistency
from grouped_conv.kernels import DeviceSpec
from grouped_conv.kernels.gradient_call import gradient_problem

H100 = DeviceSpec.get("h100")


@pytest.fixture
def two(monkeypatch):
    """Two small spaces in place of the six problems."""
    conv4 = self_consistency.problems()["conv4 weight_grad"]
    chosen = {"weights": conv4, "inputs": gradient_problem(self_consistency.workload("alexnet")["conv4"], "input_grad")}
    monkeypatch.setattr(self_consistency, "problems", lambda: chosen)
    return chosen


def invoke(*arguments):
    return CliRunner().invoke(self_consistency.main, arguments)


def test_six_problems_of_several_families():
    found = self_consistency.problems()
    assert len(found) == 6
    assert {problem.direction for problem in found.values()} == {"forward", "input_grad", "weight_grad"}


def test_everything_is_compiled_once_and_called_predicted(two, compiled, tmp_path):
    store, saved = str(tmp_path / "store.sqlite3"), tmp_path / "sweep.json"
    result = invoke("--store", store, "--save", str(saved))
    assert result.exit_code == 0, result.output
    spaces = {name: search_space(problem, H100).configs for name, problem in two.items()}
    assert len(compiled) == sum(map(len, spaces.values()))
    assert "Predicted for h100-sxm" in result.stdout
    assert "agreement with itself" in result.stdout
    recording = Recording.load(saved)
    assert recording.times == "predicted"
    assert {sweep.name: set(sweep.outcomes) for sweep in recording.sweeps} == {n: set(c) for n, c in spaces.items()}
    again = json.loads(invoke("--store", store, "--json").stdout)
    assert len(compiled) == sum(map(len, spaces.values()))
    assert again["times"] == "predicted"
    assert again["regret"] == pytest.approx(self_consistency.regrets(recording), abs=1e-3)
    shown = CliRunner().invoke(regret.main, [str(saved)])
    assert "no GPU was used" in shown.stdout
    assert "Measured" not in shown.stdout


def test_first_configurations_that_spill_are_failures_and_cost_regret(two, monkeypatch, tmp_path):
    problem = two["weights"]
    first = set(search_space(problem, H100).configs[: self_consistency.FIRST // 2])
    compiling(monkeypatch, lambda trial: compiled_to(trial, 8 if trial.config in first else 0))
    result = invoke("--store", str(tmp_path / "store.sqlite3"), "--save", str(tmp_path / "sweep.json"))
    assert result.exit_code == 0, result.output
    sweep = Recording.load(tmp_path / "sweep.json").sweeps[0]
    assert {config for config, outcome in sweep.outcomes.items() if outcome.us is None} == first
    curve = regret.regret_curve(sweep, H100, "model")
    assert curve[0] == float("inf")
    assert curve[self_consistency.FIRST - 1] >= 1.0
    assert curve[-1] == 1.0


def test_an_unknown_device_is_one_line():
    result = invoke("--device", "h900")
    assert (result.exit_code, "unknown device 'h900'" in result.output) == (2, True)
