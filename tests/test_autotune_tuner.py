"""Offline tuning and its two commands: deterministic, resumable, free when everything is known, labelled predicted."""

import json

import pytest
from click.testing import CliRunner

from grouped_conv import cli
from grouped_conv.autotune import compile_job, predicted_runner, search
from grouped_conv.autotune.cost import predict
from grouped_conv.autotune.efforts import COMPILED_SHARE, EFFORTS
from grouped_conv.autotune.heuristic import choose
from grouped_conv.autotune.implicit_gemm_search import SPILL_SLACK, ranked
from grouped_conv.autotune.implicit_gemm_terms import register_pressure
from grouped_conv.autotune.instructions import Mix
from grouped_conv.autotune.predicted_runner import PredictedRunner, compiled_outcome
from grouped_conv.autotune.resources import Resources
from grouped_conv.autotune.shortlist import shortlist
from grouped_conv.autotune.space import candidates
from grouped_conv.autotune.store import Store
from grouped_conv.autotune.tuner import tune_offline
from grouped_conv.autotune.workers import JobResult
from grouped_conv.autotune.workloads import workload
from grouped_conv.kernels import ABI_VERSION, DeviceSpec

A100, H100 = DeviceSpec.get("a100"), DeviceSpec.get("h100")
TWO = {name: problem for name, problem in workload("alexnet").items() if name in ("conv4", "conv5")}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPED_CONV_STORE", str(tmp_path / "tuning.sqlite3"))
    return Store()


def fake_resources(config, spill=0):
    mma = config.block_m * config.block_n * config.block_k // 2048 // config.num_warps
    loop = Mix(3 * mma, {"mma": mma}, {16: 8})
    return Resources(200, spill, 40_000, Mix(3 * mma + 1000, {"mma": mma}, {16: 8}, {16: 8}), loop)


COMPILED = round(EFFORTS["standard"] * COMPILED_SHARE)
"""Configurations that the default effort compiles for each problem."""


def compiling(monkeypatch, result, reverse=False):
    """Compilation replaced by a function of the trial that returns a job's result."""

    def instead(self, trials, starting):
        for trial in list(trials)[::-1] if reverse else trials:
            yield compiled_outcome(trial, self.device, result(trial))

    monkeypatch.setattr(PredictedRunner, "measure", instead)


def compiled_to(resources, family="implicit_gemm"):
    return JobResult(0, "ok", {"launches": [{"kernel": family, "resources": resources.to_json()}]}, "", 1.0)


def spilling_when_large(trial):
    return compiled_to(fake_resources(trial.config, 8 if trial.config.block_m == 256 else 0))


@pytest.fixture
def compiled(monkeypatch):
    """Compilation replaced by invented figures; the list holds every configuration that was compiled."""
    calls = []

    def result(trial):
        calls.append(trial.config)
        return spilling_when_large(trial)

    compiling(monkeypatch, result)
    return calls


def test_a_second_run_compiles_nothing(kept, compiled):
    first = tune_offline(TWO, H100, store=kept)
    assert len(compiled) == 2 * COMPILED
    second = tune_offline(TWO, H100, store=Store(kept.path))
    assert len(compiled) == 2 * COMPILED
    columns = [name for name in first.columns if name != "compiled_now"]
    assert first[columns].equals(second[columns])
    assert list(second["compiled_now"]) == [0, 0]
    assert set(first["source"]) == {"predicted"}


def test_an_interrupted_run_returns_what_it_has_and_goes_on(kept, compiled):
    def stop(event):
        if event.done == 3:
            raise KeyboardInterrupt

    table = tune_offline(TWO, H100, store=kept, progress=stop)
    assert (table.attrs["interrupted"], list(table["layer"]), list(table["candidates"])) == (True, ["conv4"], [3])
    assert len(kept.trials()) == 3
    assert not tune_offline(TWO, H100, store=kept).attrs["interrupted"]
    assert len(compiled) == 2 * COMPILED


def test_interrupted_before_anything_was_found(kept, compiled):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_offline(TWO, H100, store=kept, progress=stop)


def test_a_budget_of_no_time_tries_nothing_and_keeps_what_is_known(kept, compiled):
    assert set(tune_offline(TWO, H100, store=kept, budget_seconds=0.0)["source"]) == {"heuristic"}
    tune_offline(TWO, H100, store=kept)
    before = len(compiled)
    assert set(tune_offline(TWO, H100, store=kept, budget_seconds=0.0, effort="full")["source"]) == {"predicted"}
    assert len(compiled) == before


def test_the_answer_does_not_depend_on_the_order_of_results(kept, compiled, monkeypatch, tmp_path):
    first = tune_offline(TWO, H100, store=kept)
    compiling(monkeypatch, spilling_when_large, reverse=True)
    second = tune_offline(TWO, H100, store=Store(tmp_path / "other"))
    assert first.equals(second)


def test_spilling_code_is_never_chosen(kept, compiled):
    table = tune_offline(TWO, H100, store=kept)
    assert any(config.block_m == 256 for config in compiled)
    assert list(table["spill_bytes"]) == [0, 0]
    assert (table["unusable"] > 0).all()
    rejected = [record for record in kept.trials() if record.status == "failed"]
    assert {record.failure for record in rejected} == {"resources"}
    assert all(record.detail == f"implicit_gemm {record.config}: spills 8 bytes per thread" for record in rejected)


def test_a_search_without_a_usable_configuration_is_widened(kept, monkeypatch):
    tried = []

    def result(trial):
        tried.append(trial)
        return compiled_to(fake_resources(trial.config, 8 if len(tried) <= 4 else 0))

    compiling(monkeypatch, result)
    (row,) = tune_offline({"conv4": TWO["conv4"]}, H100, store=kept, limit=4).to_dict("records")
    assert (len(tried), row["compiled_now"], row["unusable"]) == (8, 8, 4)


def test_failures_are_rows_and_everything_failing_is_an_error(kept, monkeypatch):
    compiling(monkeypatch, lambda trial: JobResult(0, "timeout", None, "no result within 60 s", 60.0))
    with pytest.raises(RuntimeError, match=r"no configuration of conv4 .* on h100-sxm .*: no result within 60 s"):
        tune_offline({"conv4": TWO["conv4"]}, H100, store=kept, limit=4)
    assert {(record.status, record.failure) for record in kept.trials()} == {("failed", "timeout")}
    assert len(kept.trials()) == 16  # widened twice


def test_an_exception_that_is_our_own_fault_propagates_with_the_configurations_name(kept, monkeypatch):
    compiling(monkeypatch, lambda trial: JobResult(0, "error", None, "KeyError: 'dilation'", 0.1))
    with pytest.raises(RuntimeError, match=r"compiling implicit_gemm \d+x\d+x\d+ .* failed: KeyError: 'dilation'"):
        tune_offline({"conv4": TWO["conv4"]}, H100, store=kept)


def test_predictions_of_an_older_model_are_made_anew(kept, compiled, monkeypatch):
    tune_offline(TWO, H100, store=kept)
    before = {record.config: record for record in kept.trials(TWO["conv4"], H100.key)}
    for module in (predicted_runner, search):
        monkeypatch.setattr(module, "MODEL_VERSION", search.MODEL_VERSION + 1)
    twice = predicted_runner.predict
    monkeypatch.setattr(predicted_runner, "predict", lambda *a: type(p := twice(*a))(2 * p.us, *_rest(p)))
    tune_offline(TWO, H100, store=kept)
    after = {record.config: record for record in kept.trials(TWO["conv4"], H100.key)}
    assert len(compiled) == 2 * COMPILED
    assert all(after[config].predicted_us == pytest.approx(2 * old.predicted_us) for config, old in before.items())


def _rest(prediction):
    names = ("floor_us", "padding_efficiency", "wave_efficiency", "bound", "terms")
    return [getattr(prediction, name) for name in names]


def test_the_shortlist_is_various_and_holds_the_heuristics_choice(kept):
    for device in (A100, H100):
        listed = shortlist(TWO["conv4"], device, 12)
        assert len(listed) == len(set(listed)) == 12
        assert listed[0] == choose(TWO["conv4"], device)
        assert len({(config.block_m, config.block_n) for config in listed}) >= 6
        assert shortlist(TWO["conv4"], device, 12) == listed


def test_searching_tiles_first_misses_nothing():
    problem = TWO["conv5"]
    whole = candidates(problem, A100).configs
    plain = (config for config in whole if config.swizzle_m == 1 and config.static_trips)
    plain = [config for config in plain if register_pressure(problem, config, A100) <= SPILL_SLACK]
    best = min(predict(problem, config, A100).weighed_us for config in plain)
    assert predict(problem, ranked(problem, A100)[0], A100).weighed_us == best


def test_limit_is_checked(kept):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        tune_offline(TWO, H100, store=kept, limit=0)


def test_really_compiled_in_workers(kept):
    """The whole path once, two configurations of one layer."""
    done = []
    table = tune_offline(
        {"conv5": TWO["conv5"]},
        A100,
        store=kept,
        limit=2,
        jobs=1,
        progress=lambda event: done.append((event.done, event.total)),
    )
    (row,) = table.to_dict("records")
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert row["registers"] > 32
    assert row["spill_bytes"] == 0
    assert row["padding_efficiency"] >= 0.95
    assert 0 < row["floor_over_predicted"] < 1
    best = kept.best(TWO["conv5"], "a100")
    assert (str(best.config), best.abi, best.status) == (row["config"], ABI_VERSION, "predicted")
    assert best.data["launches"] == ["implicit_gemm"]


def test_the_job_is_plain_json():
    payload = compile_job.payload(TWO["conv5"], choose(TWO["conv5"], A100), A100)
    assert json.loads(json.dumps(payload)) == payload


# ---- commands


def invoke(*arguments):
    return CliRunner().invoke(cli.main, arguments)


def test_tune_prints_predictions(kept, compiled):
    result = invoke("tune", "alexnet", "--device", "a100")
    assert result.exit_code == 0, result.output
    for text in ("conv1", "conv5", "predicted us", "floor/predicted", "none was measured", str(kept.path)):
        assert text in result.stdout
    assert "measured us" not in result.stdout


def test_json_of_both_commands(kept, compiled):
    tuned = json.loads(invoke("tune", "alexnet", "--json", "--batch", "16", "--dtype", "bf16").stdout)
    assert tuned["times"] == "predicted, not measured"
    assert (tuned["device"], tuned["dtype"], tuned["batch"]) == ("h100-sxm", "bfloat16", 16)
    assert [layer["layer"] for layer in tuned["layers"]] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert {layer["source"] for layer in tuned["layers"]} == {"predicted"}
    shown = json.loads(invoke("show", "--json").stdout)
    assert len(shown["rows"]) == 5
    assert all(row["status"] == "predicted" and row["measured_us"] is None for row in shown["rows"])
    everything = json.loads(invoke("show", "--json", "--all").stdout)
    assert len(everything["rows"]) == len(compiled)


def test_show(kept, compiled):
    empty = invoke("show")
    assert (empty.exit_code, "holds no rows" in empty.stdout) == (0, True)
    invoke("tune", "alexnet")
    result = invoke("show", "--device", "h100")
    assert result.exit_code == 0
    assert result.stdout.count("h100-sxm") == 5
    assert "holds no rows" in invoke("show", "--device", "a100").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune", "vgg"), "unknown model 'vgg'; known: alexnet"),
        (("tune", "alexnet", "--device", "h900"), "unknown device 'h900'; known: a10, a100"),
        (("tune", "alexnet", "--dtype", "int8"), "dtype 'int8' is not supported"),
        (("tune", "alexnet", "--batch", "0"), "0 is not in the range"),
        (("tune",), "Missing argument 'MODEL'"),
        (("show", "--device", "h900"), "unknown device 'h900'"),
    ],
)
def test_bad_arguments_are_one_line(kept, arguments, message):
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unusable_store_is_one_line(kept, compiled):
    kept.path.mkdir()
    result = invoke("tune", "alexnet")
    assert result.exit_code == 2
    assert str(kept.path) in result.stderr
    assert result.stderr.count("\n") == 1
