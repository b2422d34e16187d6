"""The commands on stores and exports: what they print, what they leave, how they refuse."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import in_json, invoke, refusal
from processes import run_python
from store_cases import CONV4, LARGE, SMALL, measured, record

from grouped_conv.autotune.store.exchange import dumps
from grouped_conv.autotune.store.store import Store, triton_version
from grouped_conv.kernels import ABI_VERSION

ROWS = [
    record(),
    measured(LARGE, samples=20, low_us=9.5, high_us=10.5, aten_us=12.0),
    record(device="l4").failed("wrong", "off"),
]


@pytest.fixture
def kept(kept):
    kept.put(ROWS)
    return kept


def test_export(kept, tmp_path):
    file = tmp_path / "records.jsonl"
    result = invoke("export", file)
    assert (result.exit_code, result.stdout) == (0, f"3 records of {kept.path} in {file}\n")
    assert file.read_text() == dumps(ROWS) == invoke("export", "-").stdout
    file.write_text("older")
    assert in_json("export", file) == {"store": str(kept.path), "file": str(file), "records": 3}
    assert file.read_text() == dumps(ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl", "tuning.sqlite3"]


def test_export_and_import_are_inverse(kept, tmp_path, monkeypatch):
    invoke("export", tmp_path / "one")
    monkeypatch.setenv("GROUPED_CONV_STORE", str(tmp_path / "other.sqlite3"))
    result = invoke("import", tmp_path / "one", tmp_path / "one")
    assert result.exit_code == 0
    assert result.stdout == f"3 trials merged into {tmp_path / 'other.sqlite3'}, 0 conflicts\n"
    assert dumps(Store().trials()) == dumps(ROWS)


def test_nothing_is_imported_unless_all_is_valid(kept, tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(dumps([record(device="h200")]))
    bad.write_text(dumps([record(device="h100-sxm"), record(device="a10")]).replace('"predicted"', '"fine"', 1))
    before = kept.path.read_bytes()
    message = "unknown status 'fine'; accepted: started, predicted, measured, failed"
    assert refusal(invoke("import", good, bad)) == f"grouped-conv: error: {bad}, line 2: {message}\n"
    assert kept.path.read_bytes() == before


def test_a_write_that_fails_imports_nothing(kept, tmp_path):
    file = tmp_path / "many"
    file.write_text(dumps([record(replace(SMALL, split_k=2 + index)) for index in range(200)]))
    from grouped_conv.autotune.store.store import default_store

    pages = default_store()._file.query("PRAGMA page_count")[0][0]
    default_store()._file.query(f"PRAGMA max_page_count = {pages + 4}")
    assert refusal(invoke("import", file)).endswith("the disk is full; nothing was saved\n")
    assert len(Store(kept.path).trials()) == 3
    default_store().close()


def test_merge(kept, tmp_path):
    other = Store(tmp_path / "other.sqlite3")
    other.put([measured(us=8.0, samples=100), measured(LARGE, us=7.0, samples=5), record(device="h200")])
    other.close()
    exported = tmp_path / "exported"
    exported.write_text(dumps([record(device="l4")]))
    result = invoke("merge", other.path, exported)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"4 trials merged into {kept.path}, 3 conflicts\n")
    for words in (
        "kept measured 8.0 us, 100 samples, lost predicted 10.0 us",
        "kept measured 10.0 us, 20 samples, lost measured 7.0 us, 5 samples",
        "kept failed (wrong), lost predicted 10.0 us",
    ):
        assert words in result.stdout
    assert {(row.device, row.status, row.samples) for row in kept.trials()} == {
        ("a100", "measured", 100),
        ("a100", "measured", 20),
        ("h200", "predicted", 0),
        ("l4", "failed", 0),
    }
    again = in_json("merge", other.path)
    assert len(again["conflicts"]) == 1
    assert (again["conflicts"][0]["kept"]["samples"], again["conflicts"][0]["lost"]["samples"]) == (20, 5)


def test_diff(kept, tmp_path):
    exported = tmp_path / "exported"
    exported.write_text(dumps([measured(SMALL, us=3.0), record(device="h200")]))
    result = invoke("diff", kept.path, exported)
    assert result.exit_code == 1
    assert f"winner: {LARGE} measured 10.0 us | {SMALL} measured 3.0 us" in result.stdout
    assert f"only in {exported}: {SMALL} predicted 10.0 us" in result.stdout
    assert result.stdout.endswith("2 differences\n")
    same = invoke("diff", kept.path, kept.path)
    assert (same.exit_code, same.stdout) == (0, "0 differences\n")
    assert [row["kind"] for row in in_json("diff", kept.path, exported)["differences"]] == [
        "winner",
        "only in the other",
    ]


def test_gc(kept):
    old = [record(replace(SMALL, split_k=1 + i), abi=ABI_VERSION - 1, data={"text": "x" * 2000}) for i in range(99)]
    kept.put([*old, record(triton="3.0.0"), record(device="h200", updated=time.time())])
    kept.record_self_check("a100", "implicit_gemm", "forward", True)
    kept.record_self_check("a100", "implicit_gemm", "forward", True, triton="3.0.0")
    kept.start(CONV4, replace(SMALL, split_k=99), "a100")
    before = kept.path.stat().st_size
    planned = in_json("gc", "--dry-run")
    assert (planned["dry_run"], planned["trials"], planned["self_checks"]) == (True, 100, 1)
    assert kept.path.stat().st_size == before
    assert len(kept.trials()) == 105
    done = in_json("gc")
    assert done == {**planned, "dry_run": False}
    assert done["bytes_freed"] == before - kept.path.stat().st_size > 200_000
    assert {(row.abi, row.triton) for row in kept.trials()} == {(ABI_VERSION, triton_version())}
    assert kept.self_checked("a100", "implicit_gemm", "forward")
    assert "would drop 3 trials and 0 self-checks" in invoke("gc", "--older-than", "30", "--dry-run").stdout
    assert "dropped 3 trials and 0 self-checks" in invoke("gc", "--older-than", "30").stdout
    assert [row.status for row in kept.trials()] == ["started", "predicted"]


def test_gc_of_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPED_CONV_STORE", str(tmp_path / "none"))
    assert in_json("gc")["trials"] == 0
    assert list(tmp_path.iterdir()) == []


def test_show_names_failures_and_intervals(kept):
    shown = invoke("show", "--all").stdout
    assert "failed: wrong" in shown
    assert "10.0 (9.5..10.5) n=20" in " ".join(shown.split())
    rows = in_json("show", "--all")["rows"]
    assert {row["status"] for row in rows} == {"predicted", "measured", "failed"}
    assert next(row for row in rows if row["failure"])["detail"] == f"implicit_gemm {SMALL}: off"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "none.jsonl"], "'none.jsonl' does not exist"),
        (["import"], "Missing argument 'FILES...'"),
        (["merge", "."], "is a directory"),
        (["diff", "none", "none"], "'none' does not exist"),
        (["gc", "--older-than", "-1"], "-1.0 is not in the range"),
        (["export", "no/such/folder/file"], "No such file or directory"),
        (["import", __file__], "line 1: not an export of a tuning store"),
        (["merge", __file__], "line 1: not an export of a tuning store"),
    ],
)
def test_refusals_are_one_line(kept, arguments, message):
    assert message in refusal(invoke(*arguments))


@pytest.mark.parametrize("arguments", [["show"], ["export", "-"], ["gc"], ["gc", "--dry-run"], ["merge", "good"]])
def test_a_damaged_store_is_one_line(kept, tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good").write_text(dumps(ROWS))
    kept.close()
    kept.path.write_bytes(b"not a store" * 1000)
    assert "not a tuning store" in refusal(invoke(*arguments))


def test_a_pipe_of_two_processes(kept, tmp_path):
    """`grouped-conv export - > file`, and another process that imports it."""
    command = "import runpy; runpy.run_module('grouped_conv', run_name='__main__', alter_sys=True)"
    exported = run_python(command, "export", "-")
    assert exported == dumps(ROWS)
    (tmp_path / "file").write_text(exported)
    second = {"GROUPED_CONV_STORE": str(tmp_path / "second.sqlite3")}
    assert json.loads(run_python(command, "import", tmp_path / "file", "--json", **second))["trials"] == 3
