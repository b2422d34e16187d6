"""The tuning store: one SQLite file of trials and self-checks, safe to share between processes and threads.

A row is one configuration tried for one problem on one device with one kernel ABI and one Triton version. Connections
are opened on first use, per process and never across a fork; a missing file reads as an empty store.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from grouped_conv.autotune import settings
from grouped_conv.autotune.ranking import pick
from grouped_conv.autotune.records import Record, base_key, canonical, problem_key
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.problem import ConvProblem

SCHEMA_VERSION = 1
POLL_SECONDS = 0.5
"""How long `generation` trusts its last look at the file."""
BUSY_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE trials (
    problem TEXT NOT NULL, base TEXT NOT NULL, device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL,
    config TEXT NOT NULL, status TEXT NOT NULL, predicted_us REAL, measured_us REAL, aten_us REAL, data TEXT NOT NULL,
    updated REAL NOT NULL, PRIMARY KEY (problem, device, abi, triton, config)
);
CREATE INDEX trials_by_base ON trials (base, device);
CREATE TABLE searches (
    key TEXT PRIMARY KEY, configs TEXT NOT NULL, updated REAL NOT NULL
);
CREATE TABLE self_checks (
    device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL, passed INTEGER NOT NULL, detail TEXT NOT NULL,
    updated REAL NOT NULL, PRIMARY KEY (device, abi, triton)
);
"""
_COLUMNS = "problem, device, abi, triton, config, status, predicted_us, measured_us, aten_us, data, updated"
_orphans: list[sqlite3.Connection] = []  # a parent process's connections: SQLite forbids even closing them in the child


class StoreError(RuntimeError):
    """The store cannot be used; the message says why and what to do."""


def triton_version() -> str:
    """The version of Triton whose compiler the rows are about."""
    import triton

    return str(triton.__version__)


class Store:
    """The tuning store in the file at `path`; see `settings.store_path` for the default."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path).expanduser() if path is not None else settings.store_path()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = os.getpid()
        self._writes = 0
        self._seen = (0.0, 0)

    def put(self, records: Sequence[Record]) -> None:
        """Insert or replace trials, all in one transaction."""
        rows = [record.row() for record in records]
        with self._writing() as connection:
            connection.executemany(
                f"INSERT OR REPLACE INTO trials ({_COLUMNS}, base) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", rows
            )

    def trials(self, problem: ConvProblem | None = None, device_key: str | None = None) -> list[Record]:
        """All trials, or those of a problem and a device, of any ABI and Triton version, in a stable order."""
        wanted = {"problem": problem_key(problem) if problem else None, "device": device_key}
        return self._select({name: value for name, value in wanted.items() if value is not None})

    def best(self, problem: ConvProblem, device_key: str) -> Record | None:
        """The best usable trial of this kernel ABI and Triton version: measured before predicted, then the fastest.

        A problem that was never tuned takes a prediction of the same convolution with another epilogue.
        """
        current = {"device": device_key, "abi": ABI_VERSION, "triton": triton_version()}
        found = pick(self._select({"problem": problem_key(problem), **current}))
        if found is None:
            related = self._select({"base": base_key(problem), **current})
            found = pick([record for record in related if record.measured_us is None])
        return found

    def remember_search(self, key: str, configs: Sequence[Mapping[str, Any]]) -> None:
        """Keep which configurations a search shortlisted."""
        with self._writing() as connection:
            row = (key, canonical(list(configs)), time.time())
            connection.execute("INSERT OR REPLACE INTO searches (key, configs, updated) VALUES (?,?,?)", row)

    def recall_search(self, key: str) -> list[dict[str, Any]] | None:
        """The shortlist kept under `key`, or `None`."""
        rows = self._query("SELECT configs FROM searches WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def record_self_check(
        self, device_key: str, passed: bool, detail: str = "", abi: int = ABI_VERSION, triton: str | None = None
    ) -> None:
        """Note whether the kernels gave right results on this device, with this ABI and Triton."""
        row = (device_key, abi, triton or triton_version(), int(passed), detail, time.time())
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO self_checks (device, abi, triton, passed, detail, updated) "
                "VALUES (?,?,?,?,?,?)",
                row,
            )

    def self_checked(self, device_key: str, abi: int = ABI_VERSION, triton: str | None = None) -> bool:
        """Did a self-check pass on this device with this ABI and Triton?"""
        rows = self._query(
            "SELECT passed FROM self_checks WHERE device = ? AND abi = ? AND triton = ?",
            (device_key, abi, triton or triton_version()),
        )
        return bool(rows and rows[0][0])

    @property
    def generation(self) -> int:
        """A number that changes when rows change, by this process at once, by others within `POLL_SECONDS`."""
        checked, version = self._seen
        now = time.monotonic()
        if now - checked > POLL_SECONDS or self._owner != os.getpid():
            rows = self._query("PRAGMA data_version", ())
            version = int(rows[0][0]) if rows else 0
            self._seen = (now, version)
        return (version << 20) + self._writes

    def export(self) -> str:
        """All trials as canonical JSON, one per line: sorted keys, no NaN, the same text for the same rows."""
        return "".join(canonical(record.to_json()) + "\n" for record in self.trials())

    def close(self) -> None:
        """Close this process's connection; the next use opens another."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def _select(self, wanted: Mapping[str, Any]) -> list[Record]:
        condition = " AND ".join(f"{name} = ?" for name in wanted)
        query = f"SELECT {_COLUMNS} FROM trials" + (f" WHERE {condition}" if condition else "")
        rows = self._query(query + " ORDER BY device, problem, config, abi, triton", tuple(wanted.values()))
        return [Record.from_row(row) for row in rows]

    def _query(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            connection = self._connect(create=False)
            if connection is None:
                return []
            try:
                return connection.execute(query, tuple(values)).fetchall()
            except sqlite3.OperationalError as error:
                raise StoreError(f"{self.path}: {error}") from error
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return []

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; others see all of it or nothing."""
        with self._lock:
            connection = self._connect(create=True)
            assert connection is not None
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
            except sqlite3.DatabaseError as error:
                if not isinstance(error, sqlite3.OperationalError):
                    self._set_aside(error)
                raise StoreError(f"{self.path}: {error}; nothing was saved") from error
            self._writes += 1

    def _connect(self, create: bool) -> sqlite3.Connection | None:
        if self._owner != os.getpid():
            if self._connection is not None:
                _orphans.append(self._connection)
            self._connection, self._owner = None, os.getpid()
        if self._connection is None and (create or self.path.is_file()):
            try:
                self._connection = _open(self.path)
            except sqlite3.OperationalError as error:
                raise StoreError(f"{self.path}: {error}") from error
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                self._connection = _open(self.path) if create else None
        return self._connection

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Move an unreadable file away, so that tuning can go on; nothing is deleted."""
        self.close()
        kept = self.path.with_name(f"{self.path.name}.unreadable-{time.time_ns()}")
        try:
            self.path.rename(kept)
        except FileNotFoundError:
            return  # another process was quicker
        warnings.warn(
            f"{self.path} is not a readable tuning store ({error}); moved to {kept}, starting an empty one",
            stacklevel=4,
        )


@lru_cache(maxsize=8)
def _store_at(given: str | None) -> Store:
    return Store(given)


def default_store() -> Store:
    """This process's store at `settings.store_path()`."""
    return _store_at(settings.given_store())


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Create the tables in a new file; refuse a file of a later version of this package."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this grouped-conv knows {SCHEMA_VERSION}; "
            f"upgrade it, or set {settings.STORE_VARIABLE} to another file"
        )
