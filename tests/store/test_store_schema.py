"""Files of earlier schema versions become this one's, wholly or not at all."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from processes import start_child
from store_cases import CONV4, SMALL, VERSION_1

from grouped_conv.autotune.records.record import canonical, problem_key
from grouped_conv.autotune.store import schema
from grouped_conv.autotune.store.store import Store, StoreError
from grouped_conv.kernels import Epilogue

CONFIGS = [replace(SMALL, split_k=1 + i) for i in range(6)]

ROWS_1 = [
    ("predicted", 10.0, None, None, {"weighed_us": 11.0}),
    ("measured", 10.0, 12.0, 13.0, {}),
    ("rejected", 9.0, None, None, {"rejected": "spills 8 bytes per thread", "weighed_us": 9.5}),
    ("failed", None, None, None, {"failure": "timeout", "detail": "no result within 60 s"}),
    ("failed", None, None, None, {"failure": "error", "detail": "CompilationError"}),
    ("wrong", 8.0, 7.0, None, {}),
]


@pytest.fixture
def version_1(tmp_path):
    """A file as the first version of the store wrote it."""
    path = tmp_path / "tuning.sqlite3"
    base = canonical(replace(CONV4, epilogue=Epilogue()).to_json())
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    for config, (status, *times, data) in zip(CONFIGS, ROWS_1, strict=True):
        row = [problem_key(CONV4), base, "a100", 3, "3.8.0", canonical(config.to_json()), status, *times]
        connection.execute(f"INSERT INTO trials VALUES ({','.join('?' * 12)})", [*row, canonical(data), 1700.0])
    connection.execute("INSERT INTO searches VALUES ('key', '[]', 1700.0)")
    connection.execute("INSERT INTO self_checks VALUES ('a100', 3, '3.8.0', 1, '', 1700.0)")
    connection.commit()
    connection.close()
    return path


def test_version_1_is_migrated(version_1):
    kept = Store(version_1)
    rows = {record.config: record for record in kept.trials()}
    assert [rows[config].status for config in CONFIGS] == ["predicted", "measured"] + ["failed"] * 4
    assert [rows[config].failure for config in CONFIGS[2:]] == ["resources", "timeout", "compile", "wrong"]
    details = [rows[config].detail for config in CONFIGS]
    assert details[:2] == ["", ""]
    words = ("spills 8 bytes per thread", "no result within 60 s", "CompilationError", "wrong")
    for config, detail, word in zip(CONFIGS[2:], details[2:], words, strict=True):
        assert detail == f"implicit_gemm {config}: {word}"
    assert rows[CONFIGS[2]].data == {"weighed_us": 9.5}
    assert (rows[CONFIGS[1]].measured_us, rows[CONFIGS[1]].aten_us, rows[CONFIGS[1]].samples) == (12.0, 13.0, 0)
    assert {record.updated for record in rows.values()} == {1700.0}
    assert kept.self_checks("a100") == {}  # they did not say which kernels ran
    with sqlite3.connect(version_1) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    again = Store(version_1)
    assert again.trials() == kept.trials()
    assert {json.loads(row[0])["batch"] for row in again._file.query("SELECT base FROM trials")} == {0}


def test_a_migrated_file_has_the_tables_of_a_new_one(version_1, tmp_path):
    Store(version_1).trials()
    Store(tmp_path / "new").put([])
    layouts = []
    for path in (version_1, tmp_path / "new"):
        with sqlite3.connect(path) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
            layouts.append({name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in tables})
    assert layouts[0] == layouts[1]


def test_a_migration_that_fails_changes_nothing(version_1, monkeypatch):
    before = version_1.read_bytes()
    with sqlite3.connect(version_1) as connection:
        connection.execute("UPDATE trials SET data = '{' WHERE status = 'wrong'")
    damaged = version_1.read_bytes()
    with pytest.raises(StoreError, match="version 1 cannot be migrated"):
        Store(version_1).trials()
    assert version_1.read_bytes() == damaged
    version_1.write_bytes(before)
    assert len(Store(version_1).trials()) == 6


def _killed_before_statement(path, number):
    """Migrate in a child that is killed as SQLite is about to run its statement of this number; the rest it would run.

    The child's cache holds one page, so that the file changes before the transaction ends. None when it was not killed.
    """
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        connect, seen = sqlite3.connect, []

        def traced(*arguments, **named):
            connection = connect(*arguments, **named)
            connection.execute("PRAGMA cache_size = 1")
            connection.set_trace_callback(before)
            return connection

        def before(statement):
            seen.append(statement)
            if len(seen) == number:
                os.write(tells, statement.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        sqlite3.connect = traced
        Store(path).trials()
        os._exit(0)
    os.close(tells)
    _, status = os.waitpid(child, 0)
    with os.fdopen(told) as pipe:
        statement = pipe.read()
    assert status in (0, signal.SIGKILL)
    return statement if status else None


def test_killed_before_any_statement_a_migration_is_whole_or_not_begun(version_1, tmp_path):
    """Also between the last row that is moved and the version, and between the version and the transaction's end."""
    original, statements, rolled_back = version_1.read_bytes(), [], 0
    while True:
        path = tmp_path / f"killed-{len(statements)}.sqlite3"
        path.write_bytes(original)
        statement = _killed_before_statement(path, 1 + len(statements))
        if statement is None:
            break
        statements.append(statement)
        rolled_back += path.read_bytes() != original and Path(f"{path}-journal").exists()
        with closing(sqlite3.connect(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            columns = [row[1] for row in connection.execute("PRAGMA table_info(trials)")]
            assert connection.execute("SELECT count(*) FROM trials").fetchone() == (6,)
            assert ("low_us" in columns) == (version == schema.SCHEMA_VERSION)
        rows = Store(path).trials()
        assert [record.status for record in rows].count("failed") == 4
        assert len(rows) == 6
    gap = statements.index(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
    assert [statement.partition(" ")[0] for statement in statements[gap - 1 : gap + 2]] == ["DROP", "PRAGMA", "COMMIT"]
    assert rolled_back > 0


def test_processes_migrate_at_once(version_1):
    running = [start_child(lambda: len(Store(version_1).trials())) for _ in range(6)]
    assert [wait() for wait in running] == [6] * 6


def test_a_later_schema_is_refused(kept):
    kept.put([])
    with sqlite3.connect(kept.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    for use in (Store.trials, Store.ready):
        with pytest.raises(
            StoreError, match="has schema version 99, this grouped-conv knows 2; upgrade it, or set GROU"
        ):
            use(Store(kept.path))


def test_every_step_is_there():
    assert sorted(schema._STEPS) == list(range(1, schema.SCHEMA_VERSION))
