"""The public names: `_HOMES` says where each is; what type checkers read, and `__all__`, must say the same."""

import ast
from importlib import import_module
from pathlib import Path

import grouped_conv

SOURCE = ast.parse(Path(grouped_conv.__file__).read_text())


def test_type_checkers_find_every_name_where_it_is() -> None:
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    found = [(alias.asname or alias.name, node.module) for node in imports for alias in node.names]
    subpackages = dict.fromkeys(grouped_conv._SUBPACKAGES, "grouped_conv")
    assert dict(found) == grouped_conv._HOMES | subpackages
    assert len(found) == len(dict(found))


def test_all_names_are_those() -> None:
    assert grouped_conv.__all__ == sorted({*grouped_conv._HOMES, *grouped_conv._SUBPACKAGES, "__version__"})


def test_every_name_is_there() -> None:
    for name, home in grouped_conv._HOMES.items():
        assert getattr(grouped_conv, name) is getattr(import_module(home), name)
