"""Offline tuning: deterministic, resumable, free when everything is known, every direction, labelled predicted."""

import json

import pytest
from fake_compiler import COMPILED, compiled_to, compiling, interrupt, spilling_when_large

from grouped_conv.autotune.compiling import compile_job
from grouped_conv.autotune.model.families import predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.implicit_gemm.forward import SPILL_SLACK, ranked
from grouped_conv.autotune.model.implicit_gemm.forward_axes import candidates
from grouped_conv.autotune.model.implicit_gemm.forward_terms import register_pressure
from grouped_conv.autotune.search import judging, search
from grouped_conv.autotune.search.efforts import EFFORTS, plan_effort
from grouped_conv.autotune.search.shortlist import shortlist
from grouped_conv.autotune.search.tuner import tune_offline
from grouped_conv.autotune.store.store import Store
from grouped_conv.autotune.workers.pool import JobResult
from grouped_conv.autotune.workloads.named import in_directions, workload
from grouped_conv.kernels import ABI_VERSION, DeviceSpec
from grouped_conv.preparing.tuning import tune

A100, H100 = DeviceSpec.get("a100"), DeviceSpec.get("h100")
TWO = {name: problem for name, problem in workload("alexnet").items() if name in ("conv4", "conv5")}


def test_a_second_run_compiles_nothing(kept, compiled):
    first = tune_offline(TWO, H100, store=kept)
    assert len(compiled) == 2 * COMPILED
    second = tune_offline(TWO, H100, store=Store(kept.path))
    assert len(compiled) == 2 * COMPILED
    columns = [name for name in first.columns if name != "compiled_now"]
    assert first[columns].equals(second[columns])
    assert list(second["compiled_now"]) == [0, 0]
    assert set(first["source"]) == {"predicted"}


def test_without_resuming_all_is_tried_again_but_what_crashed(kept, compiled):
    tune(TWO, device="h100", store=kept, progress=False)
    assert len(compiled) == 2 * COMPILED
    crash = kept.trials(TWO["conv4"])[0].failed("crashed", "took its process down")
    kept.put([crash])
    tune(TWO, device="h100", store=kept, progress=False)
    assert len(compiled) == 2 * COMPILED
    tune(TWO, device="h100", store=kept, progress=False, resume=False)
    again = compiled[2 * COMPILED :]
    assert len(again) == 2 * COMPILED - 1
    assert crash.config not in again[:COMPILED]


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
    with pytest.raises(KeyboardInterrupt):
        tune_offline(TWO, H100, store=kept, progress=lambda event: interrupt())


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
        return compiled_to(trial, 8 if len(tried) <= 4 else 0)

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
    for module in (judging, search):
        monkeypatch.setattr(module, "MODEL_VERSION", search.MODEL_VERSION + 1)
    twice = judging.predict
    monkeypatch.setattr(judging, "predict", lambda *a: type(p := twice(*a))(2 * p.us, *_rest(p)))
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


DIRECTIONS = ("forward", "input_grad", "weight_grad")


def test_gradients_are_tuned_beside_the_forward_pass(kept, compiled):
    problems = in_directions(TWO, DIRECTIONS)
    table = tune_offline(problems, H100, store=kept, limit=3)
    assert list(table["layer"]) == [f"{layer}{more}" for layer in TWO for more in ("", " input_grad", " weight_grad")]
    assert (table["candidates"] == 3).all()
    for name, problem in problems.items():
        assert {record.config.direction for record in kept.trials(problem)} == {problem.direction}, name


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match=r"unknown directions \['sideways'\]; accepted: forward, input_grad"):
        in_directions(TWO, ["sideways"])


def test_efforts():
    live = {effort: plan_effort(effort, measures=True).trials for effort in EFFORTS}
    assert live == {"none": 0, "quick": 16, "standard": 64, "full": 256, "exhaustive": None}
    assert plan_effort("standard", measures=False).trials == COMPILED == 24
    assert plan_effort("exhaustive", measures=True).strategy == "exhaustive"
    with pytest.raises(ValueError, match="unknown effort 'huge'; accepted: none, quick"):
        plan_effort("huge", measures=True)


def test_effort_none_leaves_it_to_the_heuristic(kept, compiled):
    (row,) = tune_offline({"conv4": TWO["conv4"]}, H100, store=kept, effort="none").to_dict("records")
    assert (row["source"], row["config"], compiled) == ("heuristic", str(choose(TWO["conv4"], H100)), [])


def test_limit_is_checked(kept):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        tune_offline(TWO, H100, store=kept, limit=0)


def test_really_compiled_in_workers(kept):
    """The whole path once, two configurations of one layer."""
    done = []
    progress = lambda event: done.append((event.done, event.total))  # noqa: E731
    table = tune_offline({"conv5": TWO["conv5"]}, A100, store=kept, limit=2, jobs=1, progress=progress)
    (row,) = table.to_dict("records")
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert row["registers"] > 32
    assert row["spill_bytes"] == 0
    assert row["padding_efficiency"] >= 0.95
    assert 0 < row["floor_over_predicted"] < 1
    best = kept.best(TWO["conv5"], "a100")
    assert (str(best.config), best.abi, best.status) == (row["config"], ABI_VERSION, "predicted")
    assert best.data["launches"] == ["implicit_gemm"]


@pytest.mark.parametrize("direction", DIRECTIONS[1:])
def test_gradients_really_compile(kept, direction):
    problems = in_directions({"conv5": TWO["conv5"]}, [direction])
    (row,) = tune_offline(problems, A100, store=kept, limit=1, jobs=1).to_dict("records")
    (record,) = kept.trials()
    assert (row["registers"] > 32, row["source"], record.config.family) == (True, "predicted", direction)
    assert record.data["launches"] == [direction, *(["gradient_reduce"] if direction == "weight_grad" else [])]


def test_the_job_is_plain_json():
    payload = compile_job.payload(TWO["conv5"], choose(TWO["conv5"], A100), A100)
    assert json.loads(json.dumps(payload)) == payload
