"""Who is trying a configuration right now, and whether that process still lives.

A trial is written down before it begins. If its process ends without an outcome, the configuration may be the reason,
which the store judges by what is said here. Linux tells all of it in /proc; elsewhere only process ids are compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CHANCES = 3
"""Starts without an end after which a configuration counts as the reason that its tuners died."""
UNSEEN_SECONDS = 24 * 3600.0
"""A trial takes minutes: one begun a day ago in a place that cannot be looked into is over."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, so that neither a recycled number nor another machine's process is mistaken for it.

    Attributes:
        host: the machine's name.
        boot: identity of its boot; empty where it has none.
        space: the namespace that process numbers belong to (containers have their own); empty where there is none.
        pid: the process's number.
        born: its start, in clock ticks since the boot; empty where that is unknown.
    """

    host: str
    boot: str
    space: str
    pid: int
    born: str

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(os.uname().nodename, _boot(), _space(), pid, _born(pid) or "")


def fate(owner: Owner) -> str:
    """What became of a process: `living`, `gone`, `rebooted` with its machine, or `unseen` from here."""
    here = Owner.current()
    if owner.host != here.host:
        return "unseen"
    if owner.boot != here.boot:
        return "rebooted"
    if owner.space != here.space:
        return "unseen"
    born = _born(owner.pid)
    return "living" if born is not None and born == owner.born else "gone"


def _boot() -> str:
    return _text("/proc/sys/kernel/random/boot_id")


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When the process began, in clock ticks since the boot; empty if nobody says, None if there is no such process."""
    words = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before may hold blanks and brackets
    if words:
        return None if words[0] in "ZX" else words[19]  # zombies have ended
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # somebody else's, but alive
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
