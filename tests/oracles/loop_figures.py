"""How well emulated code uses memory on chosen source lines: sectors, and conflicts of shared memory's banks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from checkout import files_of


def every(access: str) -> bool:
    """Counts every access."""
    return True


def wider_than_words(access: str) -> bool:
    """Leaves out accesses of 4 bytes, such as those of an index list."""
    return not access.endswith("b32")


def loop_figures(
    stats: Any,
    is_counted: Callable[[Any], bool],
    of_global: Callable[[str], bool] = every,
    of_shared: Callable[[str], bool] = every,
    *,
    uses_shared: bool = True,
) -> tuple[float, float]:
    """(useful part of the sectors, wavefronts of shared memory over the conflict-free number, 1 if it is not used).

    Args:
        is_counted: whether a source line, (file, number), is counted.
        of_global, of_shared: whether an access there is counted, by its name, such as `ld.b128`.
        uses_shared: whether there must be accesses of shared memory.
    """
    read = [c for (line, access), c in stats.gline.items() if line and is_counted(line) and of_global(access)]
    shared = [c for (line, access), c in stats.sline.items() if line and is_counted(line) and of_shared(access)]
    sectors, useful = sum(c[1] for c in read), sum(c[2] for c in read)
    wavefronts, ideal = sum(c[1] for c in shared), sum(c[2] for c in shared)
    assert sectors, "the loop's accesses were not found"
    assert ideal or not uses_shared, "the loop's accesses of shared memory were not found"
    return useful / (32 * sectors), wavefronts / ideal if ideal else 1.0


def lines_of(stats: Any, *modules: ModuleType) -> Callable[[Any], bool]:
    """Counts the lines of these modules."""
    files = files_of(stats, *modules)
    return lambda line: line[0] in files


def lines_of_functions(stats: Any, functions: Mapping[ModuleType, Sequence[str]]) -> Callable[[Any], bool]:
    """Counts the lines of these functions of device code, by module."""
    lines = set[tuple[int, int]]()
    for module, names in functions.items():
        for source, first in (inspect.getsourcelines(getattr(module, name).fn) for name in names):
            lines |= {(file, line) for file in files_of(stats, module) for line in range(first, first + len(source))}
    return lambda line: tuple(line[:2]) in lines
