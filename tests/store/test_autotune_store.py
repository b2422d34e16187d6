"""The tuning store and the look-up: what is kept, who may write at once, what is believed under which policy."""

import json
import sqlite3
from dataclasses import replace

import pytest
from processes import in_child, in_threads, start_python
from store_cases import CONV4, LARGE, SMALL, measured, record

from grouped_conv.autotune.lookup import resolve as lookup
from grouped_conv.autotune.lookup.resolve import resolve
from grouped_conv.autotune.store import database, store
from grouped_conv.autotune.store.exchange import dumps
from grouped_conv.autotune.store.store import Store, StoreError, triton_version
from grouped_conv.kernels import ABI_VERSION, DeviceSpec, Epilogue
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig

A100 = DeviceSpec.get("a100")
GEMM = ("implicit_gemm", "forward")
pytestmark = pytest.mark.usefixtures("no_presets")


# ---- rows


def test_a_missing_file_is_an_empty_store(tmp_path):
    kept = Store(tmp_path / "deep" / "tuning.sqlite3")
    assert kept.trials() == []
    assert kept.best(CONV4, "a100") is None
    assert not kept.self_checked("a100", "implicit_gemm", "forward")
    assert kept.generation == 0
    assert not kept.path.parent.exists()  # reading leaves nothing behind


def test_rows_come_back_as_they_went(tmp_path):
    kept = Store(tmp_path / "deep" / "tuning.sqlite3")
    first = record(data={"terms_us": {"tensor": 1.5}}, measured_us=3.0, aten_us=4.0, status="measured")
    kept.put([first, record(LARGE)])
    again = Store(kept.path)
    assert set(again.trials()) == {first, record(LARGE)}
    (back,) = [row for row in again.trials() if row.config == SMALL]
    assert back.data == first.data
    assert back.trusted
    kept.put([replace(first, predicted_us=7.0)])
    assert len(kept.trials(CONV4, "a100")) == 2  # replaced, not added


def test_the_best_row(kept):
    kept.put(
        [record(SMALL, 10.0), record(LARGE, 9.0), record(replace(LARGE, num_warps=8), 1.0).failed("wrong", "off by 2")]
    )
    assert kept.best(CONV4, "a100").config == LARGE
    kept.put([replace(record(SMALL, 10.0), measured_us=50.0, status="measured")])
    assert kept.best(CONV4, "a100").config == SMALL  # any measurement beats a prediction
    assert kept.best(CONV4, "h100-sxm") is None


def test_other_versions_are_not_believed(kept):
    kept.put([record(abi=ABI_VERSION + 1), record(LARGE, triton="3.0.0")])
    assert kept.best(CONV4, "a100") is None
    assert len(kept.trials()) == 2


def test_a_gradient_borrows_only_from_one_that_loads_as_much(kept):
    plain, relu, silu, scaled = (
        gradient_problem(replace(CONV4, epilogue=epilogue), "input_grad")
        for epilogue in (Epilogue(), Epilogue("relu"), Epilogue("silu", bias=True), Epilogue(scale=True))
    )
    config = InputGradConfig(block_m=64, block_n=64, block_k=32)
    kept.put([record(config, problem=plain)])
    assert kept.best(plain, "a100").config == config
    assert kept.best(replace(plain, epilogue=Epilogue(shuffle=2)), "a100").config == config
    assert [kept.best(problem, "a100") for problem in (relu, silu, scaled)] == [None] * 3
    kept.put([record(config, problem=relu, us=20.0)])
    assert kept.best(silu, "a100").problem == relu
    assert kept.best(scaled, "a100") is None


def test_another_epilogue_lends_its_prediction_but_not_its_timing(kept):
    plain = replace(CONV4, epilogue=Epilogue())
    kept.put([record(SMALL, 10.0), replace(record(LARGE, 20.0), measured_us=1.0, status="measured")])
    assert kept.best(plain, "a100").config == SMALL
    kept.put([record(LARGE, 30.0, plain)])
    assert kept.best(plain, "a100").config == LARGE


def test_export_is_canonical(kept):
    kept.put([record(LARGE), record(SMALL)])
    text = dumps(kept.trials())
    rows = [json.loads(line) for line in text.splitlines()[1:]]
    assert [row["config"]["block_m"] for row in rows] == [64, 128]  # by key, not by time
    assert text == dumps(Store(kept.path).trials()[::-1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.put([record(data={"us": float("nan")})])


def test_unknown_status():
    for values, message in (
        ({"status": "fine"}, "unknown status 'fine'; accepted: started, predicted"),
        ({"status": "failed"}, "status 'failed' does not go with failure None"),
        ({"status": "measured"}, "needs measured_us"),
        *(({"us": us}, "predicted_us must be finite and not negative") for us in (float("nan"), float("inf"), -1.0)),
    ):
        with pytest.raises(ValueError, match=message):
            record(**values)
    with pytest.raises(ValueError, match="unknown failure 'tired'; accepted: invalid, compile"):
        record().failed("tired", "")


# ---- the file


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.*nothing was saved"):
        Store(tmp_path / "file" / "tuning.sqlite3").put([record()])


def test_processes_write_at_once(kept):
    script = """
        import sys
        from store_cases import *
        from grouped_conv.autotune.store.store import Store
        for index in range(25):
            Store(sys.argv[1]).put([record(replace(SMALL, split_k=1 + int(sys.argv[2]) * 25 + index))])
    """
    started = [start_python(script, kept.path, index) for index in range(3)]
    assert [process.communicate(timeout=120) for process in started] == [("", "")] * 3
    assert len(kept.trials()) == 75


def test_threads_share_a_store(kept):
    def write(index):
        for i in range(20):
            kept.put([record(replace(SMALL, split_k=1 + index * 20 + i))])
            kept.best(CONV4, "a100")

    in_threads(write, 4)
    assert len(kept.trials()) == 80


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_opens_its_own_connection(kept):
    kept.put([record()])
    inherited = kept._file._connection

    def put():
        kept.put([record(LARGE)])
        return kept._file._connection is not inherited, len(kept.trials())

    assert in_child(put) == (True, 2)
    assert len(kept.trials()) == 2


def test_generation_follows_every_writer(kept, monkeypatch):
    monkeypatch.setattr(database, "POLL_SECONDS", 0.0)
    seen = [kept.generation]
    kept.put([record()])
    seen.append(kept.generation)
    Store(kept.path).put([record(LARGE)])
    seen.append(kept.generation)
    kept.record_self_check("a100", *GEMM, True)
    seen.append(kept.generation)
    assert len(set(seen)) == len(seen)
    assert kept.generation == seen[-1]


def test_where_the_store_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUPED_CONV_STORE", str(tmp_path / "mine"))
    assert Store().path == tmp_path / "mine"
    assert store.default_store() is store.default_store()
    monkeypatch.delenv("GROUPED_CONV_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Store().path == tmp_path / "grouped-conv" / "tuning.sqlite3"


# ---- look-up

NOTHING, PREDICTED, WON, LOST, UNTIMED_ATEN = (
    [],
    [record(SMALL)],
    [measured(LARGE, 5.0, aten_us=6.0)],
    [measured(LARGE, 6.0, aten_us=5.0)],
    [measured(LARGE, 6.0)],
)


@pytest.mark.parametrize(
    ("policy", "checked", "rows", "path", "source"),
    [
        ("measured", False, NOTHING, "aten", ""),
        ("measured", False, WON, "aten", ""),
        ("measured", True, NOTHING, "aten", ""),
        ("measured", True, PREDICTED, "aten", ""),
        ("measured", True, WON, "kernel", "measured"),
        ("measured", True, LOST, "aten", ""),
        ("measured", True, UNTIMED_ATEN, "aten", ""),
        ("predicted", False, PREDICTED, "aten", ""),
        ("predicted", True, NOTHING, "kernel", "heuristic"),
        ("predicted", True, PREDICTED, "kernel", "predicted"),
        ("predicted", True, WON, "kernel", "measured"),
        ("predicted", True, LOST, "aten", ""),
        ("kernels", False, NOTHING, "kernel", "heuristic"),
        ("kernels", False, PREDICTED, "kernel", "predicted"),
        ("kernels", False, LOST, "kernel", "measured"),
    ],
)
def test_policies(kept, policy, checked, rows, path, source):
    kept.put(rows)
    if checked:
        kept.record_self_check("a100", *GEMM, True)
    choice = resolve(CONV4, A100, policy, kept)
    assert (choice.path, choice.source) == (path, source)
    assert (choice.config is None) == (path == "aten")
    assert ("set_policy" in choice.reason) == (path == "aten")
    if rows and path == "kernel":
        assert choice.config == rows[0].config


def test_a_failed_self_check_is_none(kept):
    kept.put(WON)
    kept.record_self_check("a100", *GEMM, True)
    kept.record_self_check("a100", *GEMM, False, "wrong sums")
    assert resolve(CONV4, A100, "measured", kept).path == "aten"
    kept.record_self_check("a100", *GEMM, True, triton="3.0.0")
    assert resolve(CONV4, A100, "measured", kept).path == "aten"


def test_reasons_name_device_and_versions(kept):
    reason = resolve(CONV4, A100, "measured", kept).reason
    assert "NVIDIA A100" in reason
    assert f"ABI {ABI_VERSION}, Triton {triton_version()}" in reason
    kept.record_self_check("a100", *GEMM, True)
    kept.put(LOST)
    assert "our best 6.0 us, ATen took 5.0 us" in resolve(CONV4, A100, "measured", kept).reason


def test_unknown_policy(kept):
    with pytest.raises(ValueError, match="unknown policy 'fastest'; accepted: measured"):
        resolve(CONV4, A100, "fastest", kept)


def test_a_store_that_cannot_be_used_does_not_stop_a_forward(kept, monkeypatch):
    kept.put(WON)
    with sqlite3.connect(kept.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    monkeypatch.setattr(lookup, "_warned", set())
    with pytest.warns(UserWarning, match="the tuning store is not usable"):
        assert resolve(CONV4, A100, "measured", Store(kept.path)).path == "aten"
