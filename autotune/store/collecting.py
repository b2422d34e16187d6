"""Which rows of a store can no longer be used, and what dropping them came to."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Collected:
    """What was dropped, or would be.

    Attributes:
        trials, self_checks: rows.
        bytes_before, bytes_after: size of the file.
    """

    trials: int
    self_checks: int
    bytes_before: int
    bytes_after: int

    @property
    def bytes_freed(self) -> int:
        """By how much the file shrinks."""
        return self.bytes_before - self.bytes_after


def delete_unusable(connection: sqlite3.Connection, abi: int, triton: str, oldest: float) -> tuple[int, int]:
    """Delete rows of other versions and trials last updated before `oldest`; inside a transaction.

    Self-checks of these versions stay however old they are: without them no kernel runs.

    Returns:
        How many trials and self-checks went.
    """
    values = {"abi": abi, "triton": triton, "oldest": oldest}
    other = "(abi != :abi OR triton != :triton)"
    trials = connection.execute(
        f"DELETE FROM trials WHERE status != 'started' AND ({other} OR updated < :oldest)", values
    ).rowcount
    connection.execute(f"DELETE FROM starts WHERE pid = 0 AND ({other} OR since < :oldest)", values)
    checks = connection.execute(f"DELETE FROM self_checks WHERE {other}", values).rowcount
    connection.execute("DELETE FROM searches")
    return trials, checks
