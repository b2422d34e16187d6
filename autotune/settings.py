"""The one file of the package that reads the environment, when asked and never at import.

| variable              | meaning                                                                        |
|-----------------------|--------------------------------------------------------------------------------|
| `GROUPED_CONV_STORE`  | the tuning store's file, instead of `tuning.sqlite3` in the user's data folder |
| `GROUPED_CONV_STRICT` | `1`: a convolution on a GPU that nobody tuned is an error; `0` or unset: it is not |
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

STORE_VARIABLE = "GROUPED_CONV_STORE"
STRICT_VARIABLE = "GROUPED_CONV_STRICT"


def given_store() -> str | None:
    """The file named in the environment, if one is; cheap enough to ask at every call."""
    return os.environ.get(STORE_VARIABLE) or None


def store_path() -> Path:
    """The tuning store's file; it need not exist."""
    given = given_store()
    if given is not None:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("grouped-conv", appauthor=False), "tuning.sqlite3")


def is_strict() -> bool:
    """Does the environment ask for strict mode?

    Raises:
        ValueError: for a value that is neither 0 nor 1.
    """
    value = os.environ.get(STRICT_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{STRICT_VARIABLE} must be 0 or 1, but is {value!r}")
    return value == "1"


def worker_environment() -> dict[str, str]:
    """The environment of a worker process: this one's, with this very package importable first."""
    package = sys.modules[__name__.partition(".")[0]]
    here = str(Path(package.__path__[0]).parent)
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, known] if known else [here])}
