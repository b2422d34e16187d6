"""Where a configuration comes from: the order of the sources, what each is worth, and strict mode."""

import shlex
from dataclasses import replace

import pytest
from played_gpu import PlayedGpu
from processes import in_threads
from store_cases import CONV4, SMALL
from store_cases import record as recorded

import grouped_conv
from grouped_conv.autotune.lookup import advice, sources
from grouped_conv.autotune.lookup import resolve as lookup
from grouped_conv.autotune.lookup.resolve import UntunedError, resolve
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.store.store import Store
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench import lookup_cost
from grouped_conv.context import policies
from grouped_conv.kernels import DeviceSpec, Epilogue, GroupLayout, ImplicitGemmConfig
from grouped_conv.planning.decisions import consult
from grouped_conv.planning.executors import Place

H100 = DeviceSpec.get("h100-sxm")
RESNEXT = workload("resnext50_32x4d")["stage1.0.grouped"]
GEMM = ("implicit_gemm", "forward")
CONFIGS = [replace(SMALL, split_k=1 + index) for index in range(8)]


@pytest.fixture
def kept(kept):
    kept.record_self_check("h100-sxm", *GEMM, True)
    return kept


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    """Presets by device, as if the package shipped these and no others."""
    table: dict[str, tuple[Record, ...]] = {}
    monkeypatch.setattr(sources, "shipped", lambda key: table.get(key, ()))
    return table


def record(config, device="h100-sxm", problem=CONV4, **more):
    if "measured_us" in more:
        more = {"status": "measured", "aten_us": 50.0, **more}
    return recorded(config, 9.0, problem, device, **more)


def test_sources_in_their_order(kept, shipped):
    """Each source in turn, the least sure first: every one hides those before it."""
    batch = replace(CONV4, batch=96)

    def found():
        choice = resolve(CONV4, H100, "predicted", kept)
        assert choice.path == "kernel"
        return choice.config, choice.source, choice.confidence, choice.is_tuned

    assert found() == (choose(CONV4, H100), "heuristic", "guessed", False)
    shipped["h100-sxm"] = (record(CONFIGS[0], problem=batch),)
    kept.put([])
    assert found() == (CONFIGS[0], "nearby batch", "borrowed", False)
    kept.put([record(CONFIGS[1], problem=batch)])
    assert found() == (CONFIGS[1], "nearby batch", "borrowed", False)
    kept.put([record(CONFIGS[2], "h200", measured_us=1.0)])
    assert found() == (CONFIGS[2], "nearby device", "borrowed", False)
    shipped["h100-sxm"] += (record(CONFIGS[3]),)
    kept.put([])
    assert found() == (CONFIGS[3], "preset", "predicted", True)
    kept.put([record(CONFIGS[4])])
    assert found() == (CONFIGS[4], "predicted", "predicted", True)
    kept.put([record(CONFIGS[5], measured_us=40.0)])
    assert found() == (CONFIGS[5], "measured", "measured", True)


def test_only_a_measurement_of_this_problem_on_this_device_counts_under_measured(kept, shipped):
    shipped["h100-sxm"] = (record(CONFIGS[0]),)
    kept.put(
        [
            record(CONFIGS[1]),
            record(CONFIGS[2], "h200", measured_us=1.0),
            record(CONFIGS[3], problem=replace(CONV4, batch=127), measured_us=1.0),
            record(CONFIGS[4], problem=replace(CONV4, epilogue=Epilogue()), measured_us=1.0),
        ]
    )
    choice = resolve(CONV4, H100, "measured", kept)
    assert (choice.path, choice.is_tuned) == ("aten", False)
    kept.put([record(CONFIGS[5], measured_us=40.0)])
    choice = resolve(CONV4, H100, "measured", kept)
    assert (choice.config, choice.source, choice.confidence) == (CONFIGS[5], "measured", "measured")


@pytest.mark.parametrize("batch", [1, 33, 64, 127, 129, 192, 256, 257, 1000])
def test_nearby_batches(kept, batch):
    kept.put(
        [record(CONFIGS[0], problem=replace(CONV4, batch=64)), record(CONFIGS[1], problem=replace(CONV4, batch=256))]
    )
    choice = resolve(replace(CONV4, batch=batch), H100, "kernels", kept)
    wanted = {33: 0, 64: 0, 127: 0, 129: 1, 192: 1, 256: 1, 257: 1}
    if batch not in wanted:
        assert choice.source == "heuristic"
    else:
        assert choice.config == CONFIGS[wanted[batch]]
        assert choice.source == ("predicted" if batch in (64, 256) else "nearby batch")


def test_nearby_devices(kept):
    kept.put([record(CONFIGS[0], "h100-pcie"), record(CONFIGS[1], "a100"), record(CONFIGS[2], "unheard-of")])
    assert resolve(CONV4, H100, "kernels", kept).source == "heuristic"  # 14 % fewer processors; another architecture
    kept.put([record(CONFIGS[3], "h200"), record(CONFIGS[4], "h100-nvl")])
    assert resolve(CONV4, H100, "kernels", kept).config == CONFIGS[4]  # by name where both are as near
    live = H100.with_driver_facts(key="nvidia-h100-of-a-cloud", sm_count=120)
    assert resolve(CONV4, live, "kernels", kept).config == CONFIGS[0]


def test_what_cannot_run_is_passed_over(kept):
    big = ImplicitGemmConfig(block_m=256, block_n=256, block_k=64, num_warps=4)
    kept.put([record(big)])
    assert resolve(CONV4, H100, "kernels", kept).source == "heuristic"
    kept.put([record(CONFIGS[1], "h200")])
    assert resolve(CONV4, H100, "kernels", kept).source == "nearby device"


def test_a_preset_of_another_triton_is_worth_less(kept, shipped):
    shipped["h100-sxm"] = (replace(record(CONFIGS[0]), triton="3.0.0"),)
    choice = resolve(CONV4, H100, "predicted", kept)
    assert (choice.source, choice.confidence) == ("preset", "borrowed")
    assert "predicted with Triton 3.0.0" in choice.reason


# ---- self-checks


def test_a_configuration_needs_the_self_check_of_its_own_family(tmp_path):
    kept = Store(tmp_path / "tuning.sqlite3")
    kept.put([record(CONFIGS[0], measured_us=10.0)])
    kept.record_self_check("h100-sxm", "packed_groups", "forward", True)
    kept.record_self_check("h100-sxm", "implicit_gemm", "input_grad", True)
    choice = resolve(CONV4, H100, "measured", kept)
    assert choice.path == "aten"
    assert "no forward self-check of implicit_gemm is recorded for NVIDIA H100 SXM5 80GB" in choice.reason
    kept.record_self_check("h100-sxm", *GEMM, False, "off by 2 at (0, 1)")
    for policy in ("measured", "predicted"):
        choice = resolve(CONV4, H100, policy, kept)
        assert choice.path == "aten" or choice.config.family == "packed_groups"
    assert "self-check failed" in resolve(CONV4, H100, "measured", kept).reason
    assert "implicit_gemm: off by 2 at (0, 1)" in resolve(CONV4, H100, "measured", kept).reason
    assert kept.self_checks("h100-sxm")[GEMM].detail == "off by 2 at (0, 1)"
    kept.record_self_check("h100-sxm", *GEMM, True)
    assert resolve(CONV4, H100, "measured", kept).config == CONFIGS[0]


def test_the_heuristic_chooses_among_checked_families(tmp_path):
    kept = Store(tmp_path / "tuning.sqlite3")
    assert resolve(RESNEXT, H100, "kernels", kept).config.family == "packed_groups"
    kept.record_self_check("h100-sxm", *GEMM, True)
    choice = resolve(RESNEXT, H100, "predicted", kept)
    assert (choice.config.family, choice.source) == ("implicit_gemm", "heuristic")
    kept.record_self_check("h100-sxm", *GEMM, False)
    kept.record_self_check("h100-sxm", "depthwise", "forward", True)
    choice = resolve(RESNEXT, H100, "predicted", kept)
    assert choice.path == "aten"
    assert "depthwise:" in choice.reason


def test_a_measured_runner_up_of_a_checked_family_runs(kept):
    packed = choose(RESNEXT, H100, frozenset({"packed_groups"}))
    gemm = choose(RESNEXT, H100, frozenset({"implicit_gemm"}))
    kept.put([record(packed, problem=RESNEXT, measured_us=5.0), record(gemm, problem=RESNEXT, measured_us=6.0)])
    assert resolve(RESNEXT, H100, "measured", kept).config == gemm
    kept.record_self_check("h100-sxm", "packed_groups", "forward", True)
    assert resolve(RESNEXT, H100, "measured", kept).config == packed


# ---- memory of choices


def test_where_all_that_was_tried_failed_aten_is_the_answer(kept):
    failed = [record(config).failed("wrong", "off by 2") for config in CONFIGS[:3]]
    kept.put(failed)
    assert not resolve(CONV4, H100, "measured", kept).is_tuned  # nobody timed ATen: a sweep that was not finished
    kept.put([replace(failed[1], aten_us=20.0)])
    for policy in ("measured", "predicted"):
        choice = resolve(CONV4, H100, policy, kept, strict=True)
        assert (choice.path, choice.is_tuned) == ("aten", True)
        assert "all 3 configurations that were tried failed, ATen took 20.0 us" in choice.reason
    assert resolve(CONV4, H100, "kernels", kept).path == "kernel"
    other = replace(CONV4, batch=3)
    assert "ATen took" not in resolve(other, H100, "predicted", kept).reason
    kept.put([record(CONFIGS[3], measured_us=10.0)])
    assert resolve(CONV4, H100, "measured", kept).config == CONFIGS[3]


def test_equal_problems_share_a_choice_and_changes_are_seen(kept):
    ragged = replace(CONV4, layout=GroupLayout.log_series(256, 256, 4))
    for problem in (CONV4, ragged):
        first = resolve(problem, H100, "kernels", kept)
        assert resolve(problem, H100, "kernels", kept) is first
        assert resolve(replace(problem), H100, "kernels", kept) is first
        assert resolve(problem, replace(H100), "kernels", kept) is first
    kept.put([record(CONFIGS[0])])
    changed = resolve(replace(CONV4), H100, "kernels", kept)
    assert (changed.config, changed.source) == (CONFIGS[0], "predicted")
    kept.put([record(CONFIGS[0]).failed("wrong", "off")])
    assert resolve(CONV4, H100, "kernels", kept).source == "heuristic"


def test_identities_are_never_mistaken(kept, monkeypatch):
    """Problems come and go at the same addresses: those the table names are kept alive."""
    monkeypatch.setattr(lookup, "CACHE_SIZE", 16)
    for index in range(200):
        problem = replace(CONV4, batch=1 + index % 40)
        assert resolve(problem, H100, "kernels", kept).config == choose(problem, H100)
    assert len(lookup._by_identity) <= 16


def test_threads_look_up_at_once(kept):
    wanted = [replace(CONV4, batch=batch) for batch in range(1, 30)]

    def look(_):
        return [resolve(replace(problem), H100, "predicted", kept).config for problem in wanted]

    seen = in_threads(look, 6)
    assert all(configs == seen[0] for configs in seen)


def test_the_bench_of_look_ups_runs():
    times = lookup_cost.measure(1)
    assert {"empty dictionary", "hit", "miss"} < set(times)
    assert all(us > 0 for us in times.values())


# ---- strict mode


def test_strict_mode_refuses_what_is_not_tuned(kept):
    for policy in lookup.POLICIES:
        with pytest.raises(UntunedError) as caught:
            resolve(CONV4, H100, policy, kept, strict=True)
        message = str(caught.value)
        assert str(CONV4) in message
        command = "grouped-conv tune alexnet --device h100-sxm --dtype float16 --batch 128"
        assert message.endswith(f"; run, to predict it (or to measure it where that is the GPU here): {command}")
    kept.put([record(CONFIGS[0])])
    for policy in ("predicted", "kernels"):
        assert resolve(CONV4, H100, policy, kept, strict=True).config == CONFIGS[0]
    with pytest.raises(UntunedError, match="has not been measured"):
        resolve(CONV4, H100, "measured", kept, strict=True)
    kept.put([record(CONFIGS[0], measured_us=60.0)])  # ATen was faster: that is an answer
    assert resolve(CONV4, H100, "measured", kept, strict=True).path == "aten"


def test_the_command_for_a_layer_of_no_model_runs(monkeypatch):
    problem = replace(CONV4, layout=GroupLayout.log_series(256, 256, 4), batch=3)
    live = H100.with_driver_facts(key="nvidia-h100-of-a-cloud")
    python, flag, code = shlex.split(advice.tune_command(problem, live))
    assert (python, flag) == ("python", "-c")
    asked = []
    monkeypatch.setattr(grouped_conv, "tune", lambda problems, device: asked.append((problems, device)), raising=False)
    exec(code, {})
    exec(shlex.split(advice.tune_command(problem, live, "cuda:1"))[2], {})
    assert asked == [({"layer": problem}, "sm_90"), ({"layer": problem}, "cuda:1")]


def test_a_measurement_is_advised_for_the_epilogue_that_runs():
    plain = replace(CONV4, epilogue=Epilogue())
    assert advice.tune_command(plain, H100).startswith("grouped-conv tune alexnet")  # a prediction serves it as well
    assert advice.tune_command(CONV4, H100, "cuda:0").startswith("grouped-conv tune alexnet")
    assert advice.tune_command(plain, H100, "cuda:0").startswith("python -c")


def test_strict_is_scoped_and_read_from_the_environment(monkeypatch):
    monkeypatch.setattr(policies, "_process_strict", None)
    monkeypatch.delenv("GROUPED_CONV_STRICT", raising=False)
    assert not grouped_conv.is_strict()
    monkeypatch.setenv("GROUPED_CONV_STRICT", "1")
    assert not grouped_conv.is_strict()  # read once
    monkeypatch.setattr(policies, "_process_strict", None)
    assert grouped_conv.is_strict()
    with grouped_conv.strict(False):
        assert not grouped_conv.is_strict()
        with grouped_conv.strict():
            assert grouped_conv.is_strict()
    grouped_conv.set_strict(False)
    assert not grouped_conv.is_strict()
    monkeypatch.setattr(policies, "_process_strict", None)
    monkeypatch.setenv("GROUPED_CONV_STRICT", "yes")
    with pytest.raises(ValueError, match="GROUPED_CONV_STRICT must be 0 or 1, but is 'yes'"):
        grouped_conv.is_strict()


def test_strict_mode_reaches_the_calls_of_a_gpu(kept):
    command = "run, to measure it on cuda:1: grouped-conv tune alexnet --device cuda:1 --dtype float16 --batch 128"
    with grouped_conv.strict(), pytest.raises(UntunedError, match=command):
        consult(
            CONV4, "measured", Place(PlayedGpu(H100), 1)
        )  # by its name it would be predicted if cuda:0 is another model
    with grouped_conv.strict(), pytest.raises(UntunedError, match="cannot be tuned: no device of this GPU's arch"):
        consult(CONV4, "measured", Place(PlayedGpu(None), 0))
