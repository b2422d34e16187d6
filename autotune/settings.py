"""The one file of the package that reads the environment, when asked and never at import.

| variable             | meaning                                                                      |
|----------------------|------------------------------------------------------------------------------|
| `GROUPED_CONV_STORE` | the tuning store's file, instead of `tuning.sqlite3` in the user's data folder |
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

STORE_VARIABLE = "GROUPED_CONV_STORE"


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


def worker_environment() -> dict[str, str]:
    """The environment of a worker process: this one's, with this very package importable first."""
    package = sys.modules[__name__.partition(".")[0]]
    here = str(Path(package.__path__[0]).parent)
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, known] if known else [here])}
