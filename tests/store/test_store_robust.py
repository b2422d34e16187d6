"""Stores that are damaged, forbidden, full or busy: a clear message, a look-up that goes on, and nothing lost."""

import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from processes import NOBODY, in_child, start_child
from store_cases import CONV4, SMALL, VERSION_1, measured

from grouped_conv.autotune.lookup import resolve as lookup
from grouped_conv.autotune.lookup.resolve import resolve
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.search import tuner
from grouped_conv.autotune.search.tuner import tune_offline
from grouped_conv.autotune.store import database
from grouped_conv.autotune.store.store import Store, StoreError
from grouped_conv.kernels import DeviceSpec

A100 = DeviceSpec.get("a100")
pytestmark = pytest.mark.usefixtures("no_presets")


def won(index: int = 0) -> Record:
    return measured(replace(SMALL, split_k=1 + index), 5.0 + index, aten_us=200.0)


@pytest.fixture
def kept(kept: Store) -> Store:
    """Forty rows and a passed self-check."""
    kept.put([won(index) for index in range(40)])
    kept.record_self_check("a100", "implicit_gemm", "forward", True)
    kept.close()
    return kept


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach; pytest's own cannot be, and neither may Python's: all is loaded by now."""
    folder = Path(tempfile.mkdtemp())
    assert looked_up(folder / "none") == ("heuristic", [])
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copied(kept: Store, open_folder: Path) -> Path:
    """The forty rows where another user can reach them."""
    return Path(shutil.copy(kept.path, open_folder / "tuning.sqlite3"))


def looked_up(path: Path) -> tuple[str, list[str]]:
    """The source of a configuration for conv4, and the warnings, of two look-ups."""
    lookup._warned.clear()
    with warnings.catch_warnings(record=True, action="always") as caught:
        store = Store(path)
        choice = resolve(CONV4, A100, "kernels", store)
        assert resolve(CONV4, A100, "kernels", store) is choice
    return choice.source, [str(warning.message) for warning in caught]


def refuses_to_tune(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error of a search, before anything is ranked or compiled."""
    monkeypatch.setattr(tuner, "Search", None)
    with pytest.raises(StoreError) as caught:
        tune_offline({"conv4": CONV4}, A100, store=Store(path))
    return str(caught.value)


# ---- damaged


def test_not_a_database(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.path.write_bytes(b"not a database, but long enough to look like one" * 100)
    source, (warning,) = looked_up(kept.path)
    assert source == "heuristic"
    assert "the tuning store is not usable, nothing recorded is known" in warning
    assert "not a tuning store" in warning
    message = refuses_to_tune(kept.path, monkeypatch)
    assert str(kept.path) in message
    assert "move it away to begin an empty one, or set GROUPED_CONV_STORE" in message
    assert kept.path.read_bytes().startswith(b"not a database")


def test_somebody_elses_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photos.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    before = path.read_bytes()
    assert "is a database, but no tuning store" in refuses_to_tune(path, monkeypatch)
    assert looked_up(path)[0] == "heuristic"
    assert path.read_bytes() == before


def test_truncated_anywhere(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kept.path.read_bytes()
    for length in [1, 50, 100, 4095, *range(4096, len(whole), 4096)]:
        kept.path.write_bytes(whole[:length])
        source, caught = looked_up(kept.path)
        assert (source, len(caught)) == ("heuristic", 1)
        assert str(kept.path) in refuses_to_tune(kept.path, monkeypatch)
        assert kept.path.read_bytes() == whole[:length]
    kept.path.write_bytes(b"")  # what a crash before the first commit leaves
    assert looked_up(kept.path) == ("heuristic", [])
    Store(kept.path).put([won()])
    assert looked_up(kept.path) == ("measured", [])


def test_pages_overwritten(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some bytes are in use, some are not: a fault is told, or every row is there."""
    whole, refused = kept.path.read_bytes(), 0
    for start in range(100, len(whole), 4096):
        damaged = whole[:start] + b"\xa5" * 2000 + whole[start + 2000 :]
        kept.path.write_bytes(damaged)
        source, caught = looked_up(kept.path)
        try:
            Store(kept.path).ready()
        except StoreError:
            refused += 1
            assert "damaged" in refuses_to_tune(kept.path, monkeypatch)
            assert kept.path.read_bytes() == damaged
            assert source == "measured" or "damaged" in caught[0]
        else:
            assert source == "measured"
            assert len(Store(kept.path).trials()) == 40
    assert refused > 10


def test_a_damaged_row(kept: Store) -> None:
    with sqlite3.connect(kept.path) as connection:
        connection.execute("UPDATE trials SET status = 'fine' WHERE measured_us = 7.0")
    with pytest.raises(StoreError, match=r"a row is damaged \(unknown status 'fine'"):
        Store(kept.path).trials()
    with sqlite3.connect(kept.path) as connection:  # a row of a later ABI may say what this one has no word for
        connection.execute("UPDATE trials SET abi = abi + 1 WHERE measured_us = 7.0")
    assert len(Store(kept.path).trials()) == 39


def test_a_file_that_is_replaced_while_it_is_open(kept: Store, tmp_path: Path) -> None:
    assert len(kept.trials()) == 40
    before = kept.generation
    other = Store(tmp_path / "other")
    other.put([won()])
    other.close()
    other.path.rename(kept.path)
    assert len(kept.trials()) == 1
    assert kept.generation != before
    kept.path.unlink()
    assert kept.trials() == []
    kept.put([won(), won(1)])
    assert len(Store(kept.path).trials()) == 2


# ---- forbidden


def test_a_file_and_folder_that_are_read_only(kept: Store, copied: Path) -> None:
    path, open_folder = copied, copied.parent
    for file_mode, folder_mode in ((0o444, 0o555), (0o444, 0o755), (0o644, 0o555)):
        path.chmod(file_mode)
        open_folder.chmod(folder_mode)
        assert in_child(lambda: looked_up(path), NOBODY) == ("measured", [])  # reading needs no writing
        message = str(in_child(lambda: tune_offline({"conv4": CONV4}, A100, store=Store(path)), NOBODY))
        assert message.startswith(f"StoreError: {path}: ")
        assert "writable" in message or "unable to open" in message
        assert message.endswith("nothing was saved")
        open_folder.chmod(0o755)
        assert path.read_bytes() == kept.path.read_bytes()
        assert os.listdir(open_folder) == [path.name]


def test_an_old_file_that_cannot_be_migrated_for_want_of_permission(open_folder: Path) -> None:
    path = open_folder / "tuning.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
    path.chmod(0o444)
    open_folder.chmod(0o555)
    source, (warning,) = in_child(lambda: looked_up(path), NOBODY)
    assert source == "heuristic"
    assert "not writable" in warning


def test_a_file_that_may_not_be_read(copied: Path) -> None:
    copied.chmod(0)
    source, (warning,) = in_child(lambda: looked_up(copied), NOBODY)
    assert source == "heuristic"
    assert "unable to open database file; set GROUPED_CONV_STORE to a file in a folder that is writable" in warning


def test_a_home_that_cannot_be_written(open_folder: Path) -> None:
    path = open_folder / ".local" / "share" / "tuning.sqlite3"
    open_folder.chmod(0o555)
    assert in_child(lambda: looked_up(path), NOBODY) == ("heuristic", [])  # no store is an empty one
    message = in_child(lambda: tune_offline({"conv4": CONV4}, A100, store=Store(path)), NOBODY)
    assert message == f"StoreError: {path}: Permission denied; nothing was saved"


# ---- full


def test_a_full_disk_by_the_limit_of_a_files_size(kept: Store, copied: Path) -> None:
    path = copied
    path.chmod(0o666)
    path.parent.chmod(0o777)

    def fill() -> list[str]:
        store, words = Store(path), []
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, path.stat().st_size))
        for use in (lambda: store.put([won(index) for index in range(40, 400)]), store.ready):
            try:
                use()
            except StoreError as error:
                words.append(str(error))
        return [*words, str(len(store.trials())), looked_up(path)[0]]

    put, ready, rows, source = in_child(fill, NOBODY)
    for message in (put, ready):
        assert "full" in message
        assert message.endswith("nothing was saved")
    assert (rows, source) == ("40", "measured")
    assert {record.config for record in Store(path).trials()} == {record.config for record in kept.trials()}


def put_until_full(store: Store) -> tuple[int, str]:
    """How many rows went in, and the error that stopped it."""
    for saved, index in enumerate(range(40, 400)):
        try:
            store.put([won(index)])
        except StoreError as error:
            return saved, str(error)
    return 360, ""


def test_a_full_disk_by_sqlites_own_limit(kept: Store) -> None:
    pages = kept._file.query("PRAGMA page_count")[0][0]
    kept._file.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="the disk is full; nothing was saved"):
        kept.ready()
    saved, message = put_until_full(kept)
    assert message.endswith("the disk is full; nothing was saved")
    assert len(kept.trials()) == len(Store(kept.path).trials()) == 40 + saved
    kept._file.query("PRAGMA max_page_count = 100000")
    kept.ready()  # it goes on where there is room again
    assert len(Store(kept.path).trials()) == 40 + saved


# ---- busy


def _put_and_look_up(store: Store, worker: int) -> None:
    for index in range(12):
        record = won(worker * 12 + index)
        store.start(CONV4, record.config, "a100")
        store.put([record])
        choice = resolve(CONV4, A100, "measured", store)
        assert choice.path in ("kernel", "aten")
        store.settle_orphans()


def test_eight_processes_put_and_look_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "tuning.sqlite3")
    store.record_self_check("a100", "implicit_gemm", "forward", True)
    children = [start_child(partial(_put_and_look_up, store, worker)) for worker in range(8)]
    assert [wait() for wait in children] == [None] * 8
    assert {record.config for record in store.trials()} == {won(index).config for index in range(96)}
    assert {record.status for record in store.trials()} == {"measured"}
    assert store._file.query("SELECT count(*) FROM starts")[0][0] == 0


def test_a_look_up_does_not_wait_for_a_process_that_was_stopped(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on without records, warns, and what it chose is forgotten when the store can be used again."""
    monkeypatch.setattr(database, "READ_SECONDS", 0.05)
    monkeypatch.setattr(lookup, "_warned", set())
    assert kept.generation > 0
    other = sqlite3.connect(kept.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    with pytest.warns(UserWarning, match="another process is in the middle of a transaction"):
        assert resolve(CONV4, A100, "kernels", kept).source == "heuristic"
    assert kept.generation < 0
    assert resolve(CONV4, A100, "kernels", kept).source == "heuristic"
    assert time.monotonic() - start < 5.0
    other.close()
    monkeypatch.setattr(database, "POLL_SECONDS", 0.0)
    assert kept.generation > 0
    assert resolve(CONV4, A100, "kernels", kept).source == "measured"


def test_killed_at_any_moment(kept: Store) -> None:
    """Rows of one transaction are there together or not at all, and the next process goes on."""
    seen = 40
    for seconds in (0.02, 0.05, 0.08, 0.13, 0.21):
        child = os.fork()
        if child == 0:
            for index in range(seen, 100_000, 2):
                kept.put([won(index), won(index + 1)])
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rows = {record.config.split_k for record in Store(kept.path).trials()}
        assert rows == set(range(1, len(rows) + 1))
        assert len(rows) >= seen
        assert len(rows) % 2 == 0
        seen = len(rows)
    assert seen > 40
    kept.ready()


def test_a_fork_while_another_thread_is_writing(kept: Store) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with kept._file._lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        assert in_child(lambda: len(kept.trials())) == 40
    finally:
        release.set()
        thread.join()
