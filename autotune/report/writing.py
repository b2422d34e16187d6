"""`tune --report`: one HTML file of what tuning found, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grouped_conv.autotune.search.efforts import Plan
from grouped_conv.autotune.search.search import Search
from grouped_conv.kernels.values.device import DeviceSpec


@dataclass(frozen=True)
class Run:
    """The tuning of one device.

    Attributes:
        effort, plan: what it was allowed to spend.
        searches: by problem, in the order given.
        interrupted: whether Ctrl-C ended it.
    """

    device: DeviceSpec
    effort: str
    plan: Plan
    searches: tuple[Search, ...]
    interrupted: bool = False


def check(path: Path) -> None:
    """Find out before anything is tuned whether a report could be written.

    Raises:
        ValueError: without matplotlib, with the command that installs it.
        OSError: where the file cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"a report is drawn by matplotlib, which cannot be imported ({error}): pip install 'grouped-conv[plot]'"
        ) from error
    if path.is_dir():
        raise IsADirectoryError(None, "is a folder, not a file for the report", str(path))
    probe = _beside(path.resolve())
    try:
        probe.touch(exist_ok=True)
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"no report can be written there: {error.strerror}", str(path)) from error


def write(path: Path, runs: Sequence[Run]) -> None:
    """Write the report of these runs. A reader of the file sees the old one or the new one, never a part.

    Raises:
        OSError: when it cannot be written; a file that was there stays.
    """
    from grouped_conv.autotune.report.page import page

    text, target = page(runs), path.resolve()
    beside = _beside(target)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _beside(path: Path) -> Path:
    """A name of this process's own in the same folder: only within one file system is a rename atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
