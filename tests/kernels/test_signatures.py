"""Signatures of device code stay short: arguments that belong together come in bundles (`device_code/bundles.py`)."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import grouped_conv.kernels

MOST_PARAMETERS = 12
MOST_LINES_OF_PARAMETERS = 0.25


@dataclass(frozen=True)
class Signature:
    """A `@triton.jit` function: where it is, its parameters, the lines of its parameter list and of all of it."""

    file: str
    name: str
    parameters: int
    list_lines: int
    lines: int


def signatures() -> tuple[list[Signature], set[str]]:
    """(all jit functions of kernels/, the names of those that some launch starts)."""
    found, entries = [], set()
    root = Path(grouped_conv.kernels.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Launch":
                assert isinstance(node.args[0], ast.Name), f"{path}:{node.lineno}"
                entries.add(node.args[0].id)
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "triton.jit" for d in node.decorator_list):
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                end = max((parameter.end_lineno or 0 for parameter in parameters), default=node.lineno)
                list_lines = end - node.lineno + 2 if end > node.lineno else 0  # with the name's and the closing line
                lines = (node.end_lineno or 0) - node.lineno + 1
                name = str(path.relative_to(root))
                found.append(Signature(name, node.name, len(parameters), list_lines, lines))
    return found, entries


def test_every_launched_kernel_is_found() -> None:
    found, entries = signatures()
    names = [signature.name for signature in found]
    assert len(entries) >= 20
    assert entries <= set(names)


def test_no_helper_takes_many_parameters() -> None:
    found, entries = signatures()
    long = [s for s in found if s.name not in entries and s.parameters > MOST_PARAMETERS]
    assert not long, "\n".join(f"{s.file}: {s.name} takes {s.parameters} parameters" for s in long)


def test_most_of_device_code_is_not_parameter_lists() -> None:
    found, _ = signatures()
    share = sum(s.list_lines for s in found) / sum(s.lines for s in found)
    assert share < MOST_LINES_OF_PARAMETERS, f"{share:.1%} of the lines of device code are parameter lists"
