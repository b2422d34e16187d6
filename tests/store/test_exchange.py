"""Exports: the same bytes for the same records, all of them checked before any is taken in."""

import json
import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import LARGE, SMALL, measured, record, records

from grouped_conv.autotune.store.exchange import dumps, loads, read_file
from grouped_conv.autotune.store.merging import merge

ROWS = [
    record(),
    measured(LARGE, low_us=9.5, high_us=10.5, samples=20, protocol="cold-graph-1"),
    record(device="l4").failed("wrong", "ünlike"),
]


@given(st.lists(records(), max_size=6))
def test_what_goes_out_comes_back(rows):
    settled = merge([row for row in rows if row.status != "started"], ()).records
    text = dumps(settled)
    back = loads(text, "file")
    assert [row.to_json() for row in back] == [row.to_json() for row in settled]
    assert dumps(back[::-1]) == text
    assert dumps([*settled, replace(record(), status="started")]) == text


def test_the_form():
    lines = dumps(ROWS).splitlines()
    assert lines[0] == '{"format":"grouped-conv records","schema_version":2}'
    assert len(lines) == 4
    for line in lines:
        assert line.isascii()
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))
    assert loads(dumps([]), "file") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file, line 1: not an export of a tuning store"),
        ("[1]\n", "file, line 1: not an export of a tuning store"),
        ('{"format":"grouped-conv records","schema_version":true}', "file, line 1: not an export"),
        (
            '{"format":"grouped-conv records","schema_version":3}',
            "schema version 3, this grouped-conv knows 2; upgrade",
        ),
        ('{"format":"grouped-conv records","schema_version":1}', "schema version 1 is unknown; accepted: 2"),
    ],
)
def test_bad_headers(text, message):
    with pytest.raises(ValueError, match=message):
        loads(text, "file")


def set_to(value, *path):
    def change(data):
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = value

    return change


def without(name):
    return lambda data: data.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("fine", "status"), "unknown status 'fine'; accepted: started"),
        (set_to("tired", "failure"), "unknown failure 'tired'"),
        (set_to("wrong", "failure"), "status 'predicted' does not go with failure 'wrong'"),
        (set_to("fast", "predicted_us"), "predicted_us must be a number or null, but is 'fast'"),
        (set_to(True, "predicted_us"), "predicted_us must be a number or null, but is True"),
        (set_to(-1, "predicted_us"), "predicted_us must be finite and not negative, but got -1"),
        (set_to(2**70, "samples"), "samples must be an integer, but is 1180591620717411303424"),
        (set_to(1.5, "abi"), "abi must be an integer, but is 1.5"),
        (set_to(7, "device"), "device must be a text, but is 7"),
        (set_to("\ud800", "detail"), "detail must be a text, but is"),
        (set_to([], "data"), r"data must be an object, but is \[\]"),
        (set_to(1, "surprise"), "unknown field 'surprise' with value 1"),
        (without("triton"), "'triton' is missing"),
        (set_to("128", "problem", "batch"), "batch must be an integer, but is '128'"),
        (set_to(True, "problem", "batch"), "batch must be an integer, but is True"),
        (set_to([13.0, 13], "problem", "in_size"), r"in_size must be a list of integers, but is \[13.0, 13\]"),
        (set_to(0, "problem", "layout", "groups"), "groups must be a positive integer, but got 0"),
        (set_to("x", "problem", "layout"), "attribute"),
        (set_to(7, "problem", "layout", "more"), "would be read as"),
        (set_to(1, "problem", "epilogue", "bias"), "bias must be true or false, but is 1"),
        (set_to(0.5, "problem", "epilogue", "negative_slope"), "would be read as"),
        (set_to("unheard", "config", "family"), "unknown kernel family 'unheard'"),
        (set_to(24, "config", "block_m"), "block_m must be a power of two, but got 24"),
        (set_to(64.0, "config", "block_m"), "block_m must be an integer, but is 64.0"),
        (set_to(None, "config"), "not subscriptable"),
    ],
)
def test_every_field_is_checked(change, message):
    lines = dumps(ROWS[:2]).splitlines()
    data = json.loads(lines[1])
    assert (data["status"], data["config"]["block_m"]) == ("predicted", 64)
    change(data)
    text = "\n".join([lines[0], lines[2], json.dumps(data)])
    with pytest.raises(ValueError, match=message) as caught:
        loads(text, "exported.jsonl")
    assert str(caught.value).startswith("exported.jsonl, line 3: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON .*: '{'"),
        ("[]", "a record is an object, but got"),
        ('{"predicted_us":NaN}', "NaN is no JSON number"),
        ('{"predicted_us":-Infinity}', "-Infinity is no JSON number"),
        ("[" * 100_000, "recursion|not JSON"),
    ],
)
def test_bad_lines(line, message):
    with pytest.raises(ValueError, match=f"file, line 2: .*{message}"):
        loads(dumps([]) + line + "\n", "file")


def test_a_number_that_overflows():
    text = dumps([record()]).replace('"predicted_us":10.0', '"predicted_us":1e400')
    with pytest.raises(ValueError, match="line 2: predicted_us must be finite"):
        loads(text, "file")
    text = dumps([record(data={"us": 7.5})]).replace("7.5", "1e400")
    with pytest.raises(ValueError, match="line 2: Out of range float"):
        loads(text, "file")


def test_other_stores_are_read_without_touching_them(kept, tmp_path):
    kept.put(ROWS)
    kept.start(ROWS[0].problem, replace(SMALL, split_k=9), "a100")
    kept.close()
    before = kept.path.read_bytes()
    assert sorted(row.key for row in read_file(kept.path)) == sorted(row.key for row in ROWS)
    assert kept.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [kept.path.name]
    text = tmp_path / "exported.jsonl"
    text.write_text(dumps(ROWS))
    assert dumps(read_file(text)) == dumps(ROWS)
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="neither a tuning store nor an export"):
        read_file(text)
    with sqlite3.connect(tmp_path / "photos") as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    with pytest.raises(OSError, match="no tuning store"):
        read_file(tmp_path / "photos")
