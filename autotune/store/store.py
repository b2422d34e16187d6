"""The tuning store: trials, starts of trials and self-checks, safe to share between processes and threads.

A row is one configuration tried for one problem on one device with one kernel ABI and one Triton version. It is written
down when the trial starts and settled when it ends, one transaction each, so that nothing is lost or tried for ever.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from grouped_conv.autotune import settings
from grouped_conv.autotune.records.ranking import best_of
from grouped_conv.autotune.records.record import Record, base_key, problem_key
from grouped_conv.autotune.store import inflight
from grouped_conv.autotune.store.collecting import Collected, delete_unusable
from grouped_conv.autotune.store.database import Database, StoreError
from grouped_conv.autotune.store.inflight import Owner, fate
from grouped_conv.autotune.store.merging import Merged, merge
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem

__all__ = ["Orphans", "SelfCheck", "Store", "StoreError", "default_store", "triton_version"]

_KEY = "problem = :problem AND device = :device AND abi = :abi AND triton = :triton AND config = :config"
_OWN = "host = :host AND boot = :boot AND space = :space AND pid = :pid AND born = :born"
_PROBE_BYTES = 1 << 16
"""Room for some fifty trials: where it can be written, a search does not begin on a full disk."""


def triton_version() -> str:
    """The version of Triton whose compiler the rows are about."""
    import triton

    return str(triton.__version__)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Whether a family's kernels gave right results on a device, and what was wrong if not."""

    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Orphans:
    """What `Store.settle_orphans` did.

    Attributes:
        crashed: trials that count as failed now.
        forgotten: trials that are as before they started, but for the count of their starts.
    """

    crashed: tuple[Record, ...]
    forgotten: int


class Store:
    """The tuning store in the file at `path`; see `settings.store_path` for the default.

    Every method raises `StoreError` where the file cannot be used.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path).expanduser() if path is not None else settings.store_path()
        self._file = Database(self.path)

    # ---- trials

    def put(self, records: Sequence[Record]) -> None:
        """Insert or replace trials, all in one transaction; their starts have ended."""
        rows = [record.row() for record in records]
        with self._file.writing() as connection:
            for row in rows:
                _insert(connection, "trials", row)
                connection.execute(f"DELETE FROM starts WHERE {_KEY}", row)

    def start(self, problem: ConvProblem, config: KernelConfig, device_key: str, by: Owner | None = None) -> int:
        """Write down that a trial begins, so that its end is noticed if this process does not live to tell.

        A row that is there keeps what is known. `put` ends the trial, `withdraw` takes the start back.

        Args:
            by: the process, for tests; by default this one.

        Returns:
            Starts of this trial that never ended, this one included.
        """
        owner = by or Owner.current()
        row = Record(problem, config, device_key, ABI_VERSION, triton_version(), "started").row()
        names = ("problem", "device", "abi", "triton", "config")
        begun = {name: row[name] for name in names} | {name: getattr(owner, name) for name in Owner.__slots__}
        with self._file.writing() as connection:
            before = connection.execute(f"SELECT * FROM starts WHERE {_KEY}", row).fetchone()
            attempts = 1 if before is None else before["attempts"] + (_owner_of(before) != owner)
            again = "ON CONFLICT DO UPDATE SET status = excluded.status, updated = excluded.updated"
            _insert(connection, "trials", row, again)
            _insert(connection, "starts", {**begun, "attempts": attempts, "since": time.time()})
        return attempts

    def withdraw(self) -> None:
        """Take back this process's starts, uncounted: it ends in good order (Ctrl-C), nobody is to blame."""
        with self._file.writing() as connection:
            rows = connection.execute(f"SELECT * FROM starts WHERE {_OWN}", _named(Owner.current())).fetchall()
            for row in map(dict, rows):
                _forget(connection, row)
                connection.execute(f"UPDATE starts SET attempts = attempts - 1, pid = 0 WHERE {_KEY}", row)
            connection.execute("DELETE FROM starts WHERE attempts < 1")

    def settle_orphans(self) -> Orphans:
        """Decide about trials whose process is gone; call it before a search.

        Where the machine has rebooted since, the configuration is taken for the reason and fails as `crashed`. A
        process that ended otherwise may have been stopped by its user: the start is forgotten but counted, and the
        third one that never ended fails, too. Trials of living processes stay, and those of other machines for a day.
        """
        crashed, forgotten = [], 0
        with self._file.writing() as connection:
            for row in map(dict, connection.execute("SELECT * FROM starts WHERE pid > 0 ORDER BY since").fetchall()):
                end = _end_of(row)
                if end == "living":
                    continue
                reason = _why_crashed(end, row["attempts"])
                trial = connection.execute(f"SELECT * FROM trials WHERE {_KEY} AND status = 'started'", row).fetchone()
                if reason is None and trial is not None:
                    forgotten += 1
                    _forget(connection, row)
                    connection.execute(f"UPDATE starts SET pid = 0 WHERE {_KEY}", row)
                    continue
                if trial is not None:
                    crashed.append(Record.from_row(trial).failed("crashed", str(reason)))
                    _insert(connection, "trials", crashed[-1].row())
                connection.execute(f"DELETE FROM starts WHERE {_KEY}", row)
        return Orphans(tuple(crashed), forgotten)

    def ready(self) -> None:
        """Find out now, not after the first trial, whether the file is sound and rows can be written.

        Raises:
            StoreError: saying why not; the store is as before.
        """
        self._file.check()
        with self._file.writing() as connection:
            probe = "INSERT OR REPLACE INTO searches (key, configs, updated) VALUES ('', zeroblob(?), 0)"
            connection.execute(probe, (_PROBE_BYTES,))
        with self._file.writing() as connection:
            connection.execute("DELETE FROM searches WHERE key = ''")

    def merge(self, records: Iterable[Record]) -> Merged:
        """Take in records of another store, all in one transaction; see `merging.merge` for which stay.

        Returns:
            The records of these trials as they are now, and what lost. Trials in flight elsewhere are passed over.
        """
        theirs = [record for record in records if record.status != "started"]
        with self._file.writing() as connection:
            ours = []
            for record in theirs:
                row = connection.execute(f"SELECT * FROM trials WHERE {_KEY}", record.row()).fetchone()
                ours += [] if row is None else [Record.from_row(row)]
            merged = merge(ours, theirs)
            for record in merged.records:
                _insert(connection, "trials", record.row())
        return merged

    def trials(self, problem: ConvProblem | None = None, device_key: str | None = None) -> list[Record]:
        """All trials, or those of a problem and a device, of any ABI and Triton version, in a stable order."""
        wanted = {"problem": problem_key(problem) if problem else None, "device": device_key}
        return self._select({name: value for name, value in wanted.items() if value is not None})

    def related(self, problem: ConvProblem) -> list[Record]:
        """Trials of this convolution, of any batch, epilogue and device, of this ABI and Triton version."""
        return self._select({"base": base_key(problem), "abi": ABI_VERSION, "triton": triton_version()})

    def best(self, problem: ConvProblem, device_key: str) -> Record | None:
        """The best usable trial of this kernel ABI and Triton version: measured before predicted, then the fastest.

        A problem that was never tuned takes a prediction of the same convolution with another epilogue.
        """
        return best_of((record for record in self.related(problem) if record.device == device_key), problem)

    # ---- self-checks

    def record_self_check(
        self,
        device_key: str,
        family: str,
        direction: str,
        passed: bool,
        detail: str = "",
        abi: int = ABI_VERSION,
        triton: str | None = None,
    ) -> None:
        """Note whether a family's kernels gave right results on this device, with this ABI and Triton."""
        row = {
            "device": device_key,
            "abi": abi,
            "triton": triton or triton_version(),
            "family": family,
            "direction": direction,
            "passed": int(passed),
            "detail": detail,
            "updated": time.time(),
        }
        with self._file.writing() as connection:
            _insert(connection, "self_checks", row)

    def self_checks(self, device_key: str) -> dict[tuple[str, str], SelfCheck]:
        """The self-checks of this device with this ABI and Triton, by family and direction."""
        rows = self._file.query(
            "SELECT family, direction, passed, detail FROM self_checks WHERE device = ? AND abi = ? AND triton = ?",
            (device_key, ABI_VERSION, triton_version()),
        )
        return {(row[0], row[1]): SelfCheck(bool(row[2]), row[3]) for row in rows}

    def self_checked(self, device_key: str, family: str, direction: str) -> bool:
        """Did the self-check of this family and direction pass on this device, with this ABI and Triton?"""
        check = self.self_checks(device_key).get((family, direction))
        return check is not None and check.passed

    # ---- the file

    @property
    def generation(self) -> int:
        """A number that changes when rows change; see `Database.generation`."""
        return self._file.generation

    def collect(self, older_than_days: float | None = None, *, dry_run: bool = False) -> Collected:
        """Drop what cannot be used: trials of another kernel ABI or Triton version, and those too old.

        Trials in flight stay. Shortlists that earlier versions kept go, too.

        Args:
            dry_run: do it to a copy, and only say what it came to.
        """
        if not self.path.is_file():
            return Collected(0, 0, 0, 0)
        if dry_run:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, "copy.sqlite3")
                self._file.copy(copy)
                return Store(copy).collect(older_than_days)
        limit = -1.0 if older_than_days is None else time.time() - 86_400 * older_than_days
        before = self.path.stat().st_size
        with self._file.writing() as connection:
            counts = delete_unusable(connection, ABI_VERSION, triton_version(), limit)
        self._file.vacuum()
        return Collected(*counts, before, self.path.stat().st_size)

    def close(self) -> None:
        """Close this process's connection; the next use opens another."""
        self._file.close()

    def _select(self, wanted: Mapping[str, Any]) -> list[Record]:
        condition = " AND ".join(f"{name} = ?" for name in wanted)
        query = "SELECT * FROM trials" + (f" WHERE {condition}" if condition else "")
        rows = self._file.query(query + " ORDER BY device, problem, config, abi, triton", tuple(wanted.values()))
        return [record for record in map(self._readable, rows) if record is not None]

    def _readable(self, row: Any) -> Record | None:
        """The row as a value; None for one of another ABI that this version has no names for."""
        try:
            return Record.from_row(row)
        except (ValueError, TypeError, KeyError) as error:
            if row["abi"] != ABI_VERSION:
                return None
            raise StoreError(f"{self.path}: a row is damaged ({error}); move the file away to begin anew") from error


@lru_cache(maxsize=8)
def _store_at(given: str | None) -> Store:
    return Store(given)


def default_store() -> Store:
    """This process's store at `settings.store_path()`."""
    return _store_at(settings.given_store())


def _insert(connection: Any, table: str, row: Mapping[str, Any], conflict: str = "") -> None:
    verb = "INSERT" if conflict else "INSERT OR REPLACE"
    names = ", ".join(f":{name}" for name in row)
    connection.execute(f"{verb} INTO {table} ({', '.join(row)}) VALUES ({names}) {conflict}", row)


def _forget(connection: Any, row: Any) -> None:
    """The trial as it was before it started: an outcome that was known comes back, nothing known leaves no row."""
    was = (
        "CASE WHEN failure IS NOT NULL THEN 'failed' WHEN measured_us IS NOT NULL THEN 'measured' ELSE 'predicted' END"
    )
    nothing = "failure IS NULL AND measured_us IS NULL AND predicted_us IS NULL"
    connection.execute(f"DELETE FROM trials WHERE {_KEY} AND status = 'started' AND {nothing}", row)
    connection.execute(f"UPDATE trials SET status = {was} WHERE {_KEY} AND status = 'started'", row)


def _named(owner: Owner) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in Owner.__slots__}


def _owner_of(row: Any) -> Owner:
    return Owner(**{name: row[name] for name in Owner.__slots__})


def _end_of(row: Any) -> str:
    end = fate(_owner_of(row))
    stale = time.time() - row["since"] > inflight.UNSEEN_SECONDS
    return end if end != "unseen" else ("gone" if stale else "living")


def _why_crashed(end: str, attempts: int) -> str | None:
    """Why a trial without an outcome fails; None when it gets another chance."""
    if end == "rebooted":
        return "the machine rebooted while it was tried"
    if attempts >= inflight.CHANCES:
        return "three times in flight when its tuner ended"
    return None
