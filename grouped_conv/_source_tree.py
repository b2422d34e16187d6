"""Finds kernels/, autotune/ and bench/ in a source tree whose links are missing.

In a checkout those three folders are next to grouped_conv/, and links inside it lead there. A zip download, or git
without symbolic links, has small text files instead: then these three names, and nothing else of the tree, are looked
up next to the package. An installed package has real folders and adds no finder.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_FOLDERS = ("autotune", "bench", "kernels")


class _FolderFinder(MetaPathFinder):
    def __init__(self, package: str, tree: Path) -> None:
        self._names = {f"{package}.{folder}" for folder in _FOLDERS}
        self._tree = str(tree)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [self._tree]) if fullname in self._names else None


def find_folders_beside(package_dir: str) -> None:
    """Make the three folders importable, if `package_dir` does not lead to all of them."""
    package = Path(package_dir)
    if not all((package / folder).is_dir() for folder in _FOLDERS):
        finder = _FolderFinder(package.name, package.parent)
        sys.meta_path.insert(0, finder)  # before the finder of another checkout that is installed in place
