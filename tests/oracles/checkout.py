"""Where things are in the checkout: its root, the tools beside it, the tests' helpers, a module's device code."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT.parent / "shared" / "tools"
HELPERS = os.pathsep.join(str(ROOT / "tests" / folder) for folder in ("oracles", "cases", "fakes"))
"""PYTHONPATH of a process that imports what tests share."""


def files_of(stats: Any, *modules: ModuleType) -> set[int]:
    """The indices of the debug information's files that are the modules' sources.

    Triton's cache knows functions, not files: after a kernel's file has moved, empty the cache.
    """
    sources = tuple("/" + module.__name__.replace(".", "/").removeprefix("grouped_conv/") + ".py" for module in modules)
    return {index for index, name in stats.files.items() if str(name).endswith(sources)}
