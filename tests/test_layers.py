"""Imports run one way: between the folders at the top, between the folders inside them, and never in a circle.

Late imports and those for type checkers count too.
"""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from checkout import ROOT

LAYERS = ("kernels", "autotune", "grouped_conv", "bench")
TORCH_LAYERS = ("call_values", "context", "by_torch", "planning", "ops", "autograd", "functional", "nn")
"""Of grouped_conv/, each importing only from those before it."""
MOST_MODULES = 15
"""In one folder, its `__init__.py` aside."""


def sources(folder: Path = ROOT) -> list[Path]:
    """The package's modules, each once: not through the links in grouped_conv/."""
    found = (path for layer in LAYERS for path in sorted((folder / layer).rglob("*.py")))
    return [path for path in found if path.relative_to(folder).parts[:2] not in LINKS]


LINKS = {("grouped_conv", layer) for layer in LAYERS}


def imported(path: Path) -> set[str]:
    """The dotted names a file imports; `from a import b` counts as a.b, which b may be a module of."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module(name: str) -> Path | None:
    """The file of the longest part of a dotted name that is a module of ours, from the root."""
    first, *parts = name.split(".")
    if first != "grouped_conv":
        return None
    folder = Path(*parts[:1]) if parts and parts[0] in LAYERS else Path("grouped_conv", *parts[:1])
    candidates = [folder.joinpath(*parts[1:length]) for length in range(len(parts), 0, -1)]
    for candidate in candidates:
        for path in (candidate.with_name(candidate.name + ".py"), candidate / "__init__.py"):
            if (ROOT / path).is_file():
                return path
    return Path("grouped_conv", "__init__.py")


def room(path: Path) -> str:
    """A module's folder; a module directly in a folder at the top is a room of its own."""
    return str(path if len(path.parts) == 2 else path.parent)


def imports_between_rooms() -> dict[str, set[str]]:
    """Which rooms each room imports from; `__init__.py` files name what is inside them and are left out."""
    rooms: dict[str, set[str]] = {}
    for path in (source.relative_to(ROOT) for source in sources()):
        if path.name == "__init__.py":
            continue
        targets = filter(None, map(module, imported(ROOT / path)))
        found = {room(target) for target in targets if target.name != "__init__.py"}
        rooms.setdefault(room(path), set()).update(found - {room(path)})
    return rooms


@pytest.mark.parametrize("folder", LAYERS[:-1])
def test_imports_never_run_upwards(folder):
    above = LAYERS[LAYERS.index(folder) + 1 :]
    found = []
    for path in (source.relative_to(ROOT) for source in sources()):
        if path.parts[0] != folder or path == Path("grouped_conv", "__init__.py"):
            continue  # the package's own page names the public parts of every folder, and loads none of them
        targets = {name: module(name) for name in imported(ROOT / path)}
        found += [f"{path} imports {name}" for name, target in targets.items() if target and target.parts[0] in above]
    assert found == []


def test_no_circle_of_folders():
    try:
        TopologicalSorter(imports_between_rooms()).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' <- '.join(error.args[1])}")


def test_torch_layers_import_only_those_below():
    rooms = imports_between_rooms()
    for index, layer in enumerate(TORCH_LAYERS):
        above = {f"grouped_conv/{name}" for name in TORCH_LAYERS[index + 1 :]}
        assert not rooms[f"grouped_conv/{layer}"] & above, layer


def test_no_folder_is_crowded():
    counts = Counter(path.parent for path in sources() if path.name != "__init__.py")
    counts.update(path.parent for path in (ROOT / "tests").rglob("*.py"))
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grouped_conv.kernels.values.problem.ConvProblem", "kernels/values/problem.py"),
        ("grouped_conv.autotune", "autotune/__init__.py"),
        ("grouped_conv.nn.conv", "grouped_conv/nn/conv.py"),
        ("grouped_conv", "grouped_conv/__init__.py"),
        ("torch.nn", None),
    ],
)
def test_module_of_a_name(name, expected):
    found = module(name)
    assert (found and str(found)) == expected


def test_a_circle_would_be_seen(monkeypatch):
    rooms = imports_between_rooms()
    upper, lower = next((room, target) for room, targets in sorted(rooms.items()) for target in sorted(targets))
    rooms.setdefault(lower, set()).add(upper)
    with pytest.raises(CycleError):
        TopologicalSorter(rooms).prepare()


def test_kernels_stay_light():
    """A compile worker loads this folder alone: torch.nn would be most of its start."""
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        heavy = {name for name in imported(path) if name.startswith(("torch.nn", "pandas", "rich", "click"))}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"
