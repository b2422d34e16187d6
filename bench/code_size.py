"""The size of the code: `python -m grouped_conv.bench.code_size [FOLDER] [--json]`.

Counts the lines of each top folder, the lines of device code and how many of them are parameter lists, and lists what
is too long: host functions over 60 lines, files over 400, folders with more than 15 modules.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

TOPS = ("kernels", "autotune", "grouped_conv", "bench", "tests")
FUNCTION_LINES, FILE_LINES, FOLDER_MODULES = 60, 400, 15


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, methods and nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameter_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines between `def` and the colon; none for a signature of one line."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    last = max((one.end_lineno or one.lineno for one in named), default=function.lineno)
    return last - function.lineno + 2 if last > function.lineno else 0


def is_device_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def count(root: Path) -> dict[str, Any]:
    """All figures of a source tree."""
    lines, modules, device = Counter[str](), Counter[str](), Counter[str]()
    long_functions, long_files = {}, {}
    for top in TOPS:
        for path in sorted((root / top).rglob("*.py")):  # follows no links
            place, text = str(path.relative_to(root)), path.read_text()
            size = text.count("\n")
            lines[top] += size
            modules[str(path.parent.relative_to(root))] += path.name != "__init__.py"
            if size > FILE_LINES:
                long_files[place] = size
            for function in functions(ast.parse(text)):
                if is_device_code(function) and top != "tests":
                    device["lines"] += length(function)
                    device["parameters"] += parameter_lines(function)
                elif length(function) > FUNCTION_LINES and not is_device_code(function):
                    long_functions[f"{place}:{function.name}"] = length(function)
    source = sum(size for top, size in lines.items() if top != "tests")
    return {
        "lines": {**lines, "source": source},
        "device code": {**device, "parameter share": round(device["parameters"] / max(1, device["lines"]), 3)},
        f"functions over {FUNCTION_LINES} lines": long_functions,
        f"files over {FILE_LINES} lines": long_files,
        f"folders with over {FOLDER_MODULES} modules": {k: n for k, n in modules.items() if n > FOLDER_MODULES},
    }


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(folder: Path, as_json: bool) -> None:
    """Count the code in FOLDER, the root of a source tree; by default the current one."""
    found = count(folder)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for title, figures in found.items():
        click.echo(title + ("" if figures else ": none"))
        for name, figure in figures.items():
            click.echo(f"  {name:60}{figure:>8}")


if __name__ == "__main__":
    main()
