"""The store's SQLite file: opening it, transactions, and errors in words a user can act on.

One connection per process: a forked child gets its own. The journal is SQLite's default, a file deleted at each
commit. The faster WAL needs memory shared by all readers, so it fails on network file systems, and files that can be
written even to read: a cluster's home and a read-only installation would be out.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from grouped_conv.autotune import settings
from grouped_conv.autotune.store import schema

POLL_SECONDS = 5.0
"""How long `generation` trusts its last look at the file. A change makes every call plan anew, which must stay rare
while another process tunes."""
_UNUSABLE = -1
_LEAST_BYTES = 512
"""SQLite's smallest page."""
READ_SECONDS, WRITE_SECONDS = 5.0, 30.0
"""How long to wait for other processes' transactions, each of which takes milliseconds. A look-up must not wait long
for a process that was stopped in one."""

_all: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[sqlite3.Connection] = []  # SQLite forbids even closing a parent's connections in the child


class StoreError(OSError):
    """The store cannot be used; the message says why and what to do."""


class Database:
    """The file at `path`; missing or empty, it reads as one without rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._changes = 0
        self._seen = (float("-inf"), 0)
        _all.add(self)

    def query(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of a SELECT.

        Raises:
            StoreError: when there is a file but it cannot be read.
        """
        try:
            with self._lock, self._explained(""):
                connection = self._connect(create=False)
                if connection is None:
                    return []
                _wait(connection, READ_SECONDS)
                return connection.execute(query, tuple(values)).fetchall()
        except StoreError:  # what was decided without these rows may not outlive the fault
            if self._seen[1] >= 0:
                self._changes += 1
            self._seen = (time.monotonic(), _UNUSABLE)
            raise

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: others see all of it or nothing, and so does the next reader after a failure.

        Raises:
            StoreError: when nothing could be written.
        """
        with self._lock, self._explained("; nothing was saved"):
            connection = self._connect(create=True)
            assert connection is not None
            _wait(connection, WRITE_SECONDS)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
            self._changes += 1

    def vacuum(self) -> None:
        """Give the room of deleted rows back to the disk."""
        with self._lock, self._explained(""):
            connection = self._connect(create=True)
            assert connection is not None
            _wait(connection, WRITE_SECONDS)
            connection.execute("VACUUM")

    def copy(self, path: Path) -> None:
        """Write what the file holds now to a new one."""
        with self._lock, self._explained(""), closing(sqlite3.connect(path)) as target:
            connection = self._connect(create=False)
            if connection is not None:
                connection.backup(target)

    def check(self) -> None:
        """Read the whole file for faults, some 10 ms per megabyte.

        Raises:
            StoreError: naming the first fault.
        """
        faults = [row[0] for row in self.query("PRAGMA quick_check(1)")]
        if faults not in ([], ["ok"]):
            raise StoreError(f"{self.path}: the file is damaged ({faults[0]}); {_move()}")

    @property
    def generation(self) -> int:
        """A number that changes when rows change, by this process at once, by others within `POLL_SECONDS`.

        Negative while the file cannot be used, which is tried again after `POLL_SECONDS`: asking never fails.
        """
        if time.monotonic() - self._seen[0] > POLL_SECONDS:
            with suppress(StoreError):
                rows = self.query("PRAGMA data_version")
                self._seen = (time.monotonic(), int(rows[0][0]) if rows else 0)
        return (self._seen[1] << 20) + self._changes

    def close(self) -> None:
        """Close this process's connection; the next use opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _connect(self, create: bool) -> sqlite3.Connection | None:
        now = _identity(self.path)
        if self._connection is not None and now != self._opened:  # another process removed or replaced the file
            self.close()
        if self._connection is None and (create or now is not None):
            self._connection = _open(self.path, create)
            self._opened = _identity(self.path)
            self._changes += 1
        return self._connection

    def _after_fork(self) -> None:
        if self._connection is not None:
            _inherited.append(self._connection)
        self._connection, self._lock = None, threading.RLock()  # another thread may have held the lock

    @contextmanager
    def _explained(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path}: {_explain(error)}{consequence}") from error
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}{consequence}") from error


def _after_fork() -> None:
    for database in list(_all):
        database._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at `path`; None for none and for an empty one, which holds no rows."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def _wait(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")


def _open(path: Path, create: bool) -> sqlite3.Connection:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    if (
        path.exists() and 0 < path.stat().st_size < _LEAST_BYTES
    ):  # SQLite would take one byte for nothing and write over it
        raise StoreError(f"{path}: not a tuning store; {_move()}")
    connection = sqlite3.connect(path, timeout=WRITE_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        _prepare(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Create the tables in a new file, migrate an older one; refuse a file of a later version of this package."""
    if _version(path, connection) == schema.SCHEMA_VERSION:
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        version = _version(path, connection)  # another process may have been quicker
        if version == 0:
            schema.create(connection)
        elif version < schema.SCHEMA_VERSION:
            try:
                schema.migrate(connection, version)
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}: schema version {version} cannot be migrated: {error}") from error
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")


def _version(path: Path, connection: sqlite3.Connection) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > schema.SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this grouped-conv knows {schema.SCHEMA_VERSION}; "
            f"upgrade it, or set {settings.STORE_VARIABLE} to another file"
        )
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise StoreError(f"{path} is a database, but no tuning store; set {settings.STORE_VARIABLE} to another file")
    return version


def _move() -> str:
    return f"move it away to begin an empty one, or set {settings.STORE_VARIABLE} to another file"


def _explain(error: sqlite3.DatabaseError) -> str:
    """What happened, and what to do where that is not obvious."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest is SQLite's finer distinction
    return {
        sqlite3.SQLITE_NOTADB: f"not a tuning store ({error}); {_move()}",
        sqlite3.SQLITE_CORRUPT: f"the file is damaged ({error}); {_move()}",
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_IOERR: f"reading or writing failed ({error}); is the disk full?",
        sqlite3.SQLITE_READONLY: f"not writable ({error}); set {settings.STORE_VARIABLE} to a file that is",
        sqlite3.SQLITE_CANTOPEN: f"{error}; set {settings.STORE_VARIABLE} to a file in a folder that is writable",
        sqlite3.SQLITE_BUSY: "another process is in the middle of a transaction and does not end it",
    }.get(code, str(error))
