"""The command that makes the presets: the same bytes whatever was known before, and a check that can fail."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_compiler import compiled_to, compiling, failing_at, interrupt

from grouped_conv.autotune import make_presets
from grouped_conv.autotune.lookup import presets
from grouped_conv.autotune.lookup.preset_problems import preset_problems
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.predicted_runner import PredictedRunner
from grouped_conv.autotune.search.tuner import tune_with
from grouped_conv.autotune.store.store import Store
from grouped_conv.autotune.workers.pool import JobResult
from grouped_conv.kernels import ConvProblem, DeviceSpec

H100 = DeviceSpec.get("h100")


@pytest.fixture(autouse=True)
def problems(monkeypatch: pytest.MonkeyPatch) -> dict[str, ConvProblem]:
    """A few of the problems, one in each direction, for every test here."""
    names = ["conv4", "conv5 input_grad", "conv2 weight_grad"]
    few = {name: preset_problems()[f"alexnet {name}, batch 128, float16"] for name in names}
    monkeypatch.setattr(make_presets, "preset_problems", lambda: few)
    return few


def run(*arguments: object) -> Result:
    return CliRunner().invoke(make_presets.main, list(map(str, arguments)))


def test_it_writes_one_file_per_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: dict) -> None:
    tried = []
    compiling(monkeypatch, lambda trial: tried.append(trial) or compiled_to(trial))
    done = run("--folder", tmp_path, "--device", "h100", "--device", "a100", "--limit", 2)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {"h100-sxm.json", "a100.json"}
    assert len(tried) == 2 * 2 * len(problems)
    assert "h100-sxm: 3 problems, 2 trials each" in done.stderr
    assert "3 presets" in done.stdout
    assert "2 trials each; predicted, not measured" in done.output
    for device in ("h100-sxm", "a100"):
        text = (tmp_path / f"{device}.json").read_text()
        assert {row.problem for row in presets.read_presets(text)} == set(problems.values())
        assert presets.checked(text)["trials"] == 2


def test_the_bytes_do_not_depend_on_what_a_store_knows_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: dict
) -> None:
    compiling(monkeypatch, compiled_to)
    first, again, file = tmp_path / "first", tmp_path / "again", tmp_path / "store.sqlite3"
    first.mkdir()
    again.mkdir()
    assert run("--folder", first, "--device", "h100", "--limit", 2).exit_code == 0
    text = (first / "h100-sxm.json").read_text()
    plan = plan_effort("standard", measures=False)
    with PredictedRunner(H100) as runner:
        others = tune_with(runner, problems, H100, Store(file), plan)
    found = {search.problem: search.best() for search in others.searches}
    assert {problem: best.config for problem, best in found.items() if best} != {
        row.problem: row.config for row in presets.read_presets(text)
    }, "the store knows nothing better: this test would show nothing"
    compiling(monkeypatch, compiled_to, reverse=True)
    assert run("--folder", again, "--device", "h100", "--limit", 2, "--store", file).exit_code == 0
    assert (again / "h100-sxm.json").read_bytes() == text.encode()


def test_an_interrupted_run_goes_on_and_writes_nothing_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, calls = failing_at(3, interrupt)
    compiling(monkeypatch, result)
    arguments = ("--folder", tmp_path, "--device", "h100", "--limit", 2, "--store", tmp_path / "store.sqlite3")
    assert run(*arguments).exit_code == 1
    assert not (tmp_path / "h100-sxm.json").exists()
    assert run(*arguments).exit_code == 0
    assert len(calls) == 2 * 3 + 1  # the third was begun twice


def test_the_check_passes_and_fails(tmp_path: Path, compiled: list) -> None:
    arguments = ("--folder", tmp_path, "--device", "h100", "--limit", 2)
    missing = run(*arguments, "--check")
    assert (missing.exit_code, missing.output) == (1, f"{tmp_path / 'h100-sxm.json'}: is missing\n")
    assert not compiled
    run(*arguments)
    file = tmp_path / "h100-sxm.json"
    text = file.read_text()
    same = run(*arguments, "--check")
    assert (same.exit_code, same.stdout) == (0, f"{file}: as generated\n")

    content = json.loads(text)
    us = content["rows"][0]["predicted_us"]
    file.write_text(text.replace(f'"predicted_us":{us}', f'"predicted_us":{us + 1}'))
    slower = run(*arguments, "--check")
    assert slower.exit_code == 1
    assert [line[0] for line in slower.stdout.splitlines()[3:]] == ["@", "-", "+"]
    assert f"{us + 1} us" in slower.output
    assert f"{us} us" in slower.output

    file.write_text(json.dumps(content))
    assert "differs in its form alone" in run(*arguments, "--check").output
    assert file.read_text() == json.dumps(content), "a check writes nothing"


def test_a_file_of_other_versions_is_stale_without_compiling(tmp_path: Path, compiled: list) -> None:
    arguments = ("--folder", tmp_path, "--device", "h100")
    run(*arguments, "--limit", 2)
    compiled.clear()
    done = run(*arguments, "--limit", 3, "--check")
    assert (done.exit_code, done.output.endswith("made with trials 2, not 3\n")) == (1, True)
    file = tmp_path / "h100-sxm.json"
    file.write_text(file.read_text().replace('"abi":', '"abi":1'))
    assert "made with abi 1" in run(*arguments, "--limit", 2, "--check").output
    assert compiled == []


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list) -> None:
    unknown = run("--folder", tmp_path, "--device", "h100", "--device", "h1000")
    assert unknown.exit_code == 2
    assert "unknown device 'h1000'; known: " in unknown.output
    assert compiled == []
    (tmp_path / "a100.json").write_text("{}")
    assert "a preset file has the fields" in run("--folder", tmp_path, "--device", "a100", "--check").output

    def spilling(trial) -> JobResult:
        return compiled_to(trial, 8 if trial.problem.direction == "weight_grad" else 0)

    compiling(monkeypatch, spilling)
    done = run("--folder", tmp_path, "--device", "h100", "--limit", 1)
    assert done.exit_code == 2
    assert "no configuration that was tried can be used on h100-sxm (sm_90): conv2 weight_grad" in done.output
    assert not (tmp_path / "h100-sxm.json").exists()


def test_failures_by_chance_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = failing_at(2, lambda: JobResult(0, "timeout", None, "no result within 60 s"))
    compiling(monkeypatch, result)
    done = run("--folder", tmp_path, "--device", "h100", "--limit", 2)
    assert done.exit_code == 0
    assert "trials that another run may end otherwise: timeout 1" in done.output
