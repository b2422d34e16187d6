"""Configuration of the documentation site: `python -m sphinx -W -b html docs docs/_build/html`.

The build needs no network: nothing is fetched and no other project's index is consulted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))

import grouped_conv

project = "grouped-conv"
author = "grouped-conv developers"
copyright = author
version = release = grouped_conv.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

default_role = "literal"  # docstrings write `code` with one backtick, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay short; the docstrings give shapes and units
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"grouped-conv {version}"
html_copy_source = False


class CommandHelp(SphinxDirective):
    """The help text of `grouped-conv` and of each of its sub-commands, a section for each."""

    def run(self) -> list[nodes.Node]:
        from grouped_conv.cli.main import main

        top = click.Context(main, info_name="grouped-conv", terminal_width=86)
        found: list[nodes.Node] = [nodes.literal_block(text=main.get_help(top), language="text")]
        for name in main.list_commands(top):
            command = main.get_command(top, name)
            assert command is not None
            context = click.Context(command, info_name=name, parent=top, terminal_width=86)
            section = nodes.section(ids=[f"command-{name}"], names=[f"command-{name}"])
            section += nodes.title(text=name)
            section += nodes.literal_block(text=command.get_help(context), language="text")
            found.append(section)
        return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
