"""The tables of the tuning store, and how a file of an earlier version becomes one of this version.

Version 2 brought failures with a reason, the raw figures of a measurement, starts of trials, and self-checks per kernel
family. A migration runs in the transaction that raises the version: a file has one version or the other. Nothing reads
`searches` any more; `Store.ready` tries there whether the disk has room.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from grouped_conv.autotune.records.record import base_key, canonical, failure_detail, known_problem
from grouped_conv.kernels.families import KernelConfig

SCHEMA_VERSION = 2

_TRIALS = """
CREATE TABLE trials (
    problem TEXT NOT NULL, base TEXT NOT NULL, device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL,
    config TEXT NOT NULL, status TEXT NOT NULL, predicted_us REAL, measured_us REAL, aten_us REAL, failure TEXT,
    detail TEXT NOT NULL, protocol TEXT NOT NULL, low_us REAL, high_us REAL, samples INTEGER NOT NULL,
    data TEXT NOT NULL, updated REAL NOT NULL, PRIMARY KEY (problem, device, abi, triton, config)
);
CREATE INDEX trials_by_base ON trials (base, abi, triton);
"""
_STARTS = """
CREATE TABLE starts (
    problem TEXT NOT NULL, device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL, config TEXT NOT NULL,
    attempts INTEGER NOT NULL, host TEXT NOT NULL, boot TEXT NOT NULL, space TEXT NOT NULL, pid INTEGER NOT NULL,
    born TEXT NOT NULL, since REAL NOT NULL, PRIMARY KEY (problem, device, abi, triton, config)
);
"""
_SELF_CHECKS = """
CREATE TABLE self_checks (
    device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL, family TEXT NOT NULL, direction TEXT NOT NULL,
    passed INTEGER NOT NULL, detail TEXT NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (device, abi, triton, family, direction)
);
"""
_SEARCHES = """
CREATE TABLE searches (
    key TEXT PRIMARY KEY, configs TEXT NOT NULL, updated REAL NOT NULL
);
"""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file; inside a transaction."""
    _run(connection, _TRIALS + _STARTS + _SELF_CHECKS + _SEARCHES)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables of `version` to `SCHEMA_VERSION`; inside a transaction."""
    for step in range(version, SCHEMA_VERSION):
        _STEPS[step](connection)


def _from_1(connection: sqlite3.Connection) -> None:
    """Old self-checks go: they do not say which kernels ran, and a device without one runs none of ours."""
    _run(connection, "DROP INDEX trials_by_base; ALTER TABLE trials RENAME TO old_trials; DROP TABLE self_checks;")
    _run(connection, _TRIALS + _STARTS + _SELF_CHECKS)
    names = "problem, device, abi, triton, config, status, predicted_us, measured_us, aten_us, data, updated"
    for row in connection.execute(f"SELECT {names} FROM old_trials").fetchall():
        values = _trial_of_1(dict(zip(names.split(", "), row, strict=True)))
        marks = ", ".join("?" * len(values))
        connection.execute(f"INSERT INTO trials ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
    _run(connection, "DROP TABLE old_trials;")


def _trial_of_1(row: dict[str, Any]) -> dict[str, Any]:
    """`rejected` and `wrong` were statuses, the kind of a failure was data."""
    data, failure, detail = json.loads(row["data"]), None, ""
    if row["status"] not in ("predicted", "measured"):
        kinds = {"rejected": "resources", "wrong": "wrong", "failed": _FAILURES_OF_1.get(data.pop("failure", ""))}
        failure = kinds[row["status"]] or "compile"
        words = [data.pop(name, "") for name in ("rejected", "detail")]
        config = KernelConfig.from_json(json.loads(row["config"]))
        detail = failure_detail(config, next(filter(None, words), failure))
    more = {"failure": failure, "detail": detail, "protocol": "", "samples": 0, "data": canonical(data)}
    status = row["status"] if failure is None else "failed"
    return {**row, **more, "status": status, "base": base_key(known_problem(row["problem"]))}


_FAILURES_OF_1 = {"error": "compile", "timeout": "timeout", "crashed": "crashed"}
_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1}


def _run(connection: sqlite3.Connection, statements: str) -> None:
    """Statement by statement: `executescript` would end the transaction."""
    for statement in statements.split(";"):
        connection.execute(statement)
