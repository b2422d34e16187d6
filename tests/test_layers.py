"""kernels <- autotune <- grouped_conv <- bench: no folder imports one to its right, late imports included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("kernels", "autotune", "grouped_conv", "bench")


def imported(path: Path) -> set[str]:
    """The dotted names a file imports; `from a import b` counts as a.b, which b may be a module of."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(name: str) -> str | None:
    first, _, rest = name.partition(".")
    if first != "grouped_conv":
        return None
    inner = rest.partition(".")[0]
    return inner if inner in LAYERS else "grouped_conv"


@pytest.mark.parametrize("folder", LAYERS[:-1])
def test_imports_never_run_upwards(folder):
    above = LAYERS[LAYERS.index(folder) + 1 :]
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if (ROOT / folder / "__init__.py") == path and folder == "grouped_conv":
            continue  # names the public parts of every folder, and loads none of them
        found += [f"{path.relative_to(ROOT)} imports {name}" for name in imported(path) if layer(name) in above]
    assert found == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grouped_conv.kernels.values.problem.ConvProblem", "kernels"),
        ("grouped_conv.autotune", "autotune"),
        ("grouped_conv.nn.conv", "grouped_conv"),
        ("grouped_conv", "grouped_conv"),
        ("torch.nn", None),
    ],
)
def test_layer_of_a_name(name, expected):
    assert layer(name) == expected


def test_kernels_stay_light():
    """A compile worker loads this folder alone: torch.nn would be most of its start."""
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        heavy = {name for name in imported(path) if name.startswith(("torch.nn", "pandas", "rich", "click"))}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"
