"""Every Python block of README and the documentation runs, and every command shown exists with its options."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from checkout import ROOT
from snippets import Block, commands, pages, python_blocks

import grouped_conv
from grouped_conv.cli.main import main as grouped_conv_command

EXECUTED = [page for page in pages() if any(block.skip is None for block in python_blocks(page))]
SKIPPED = [block for page in pages() for block in python_blocks(page) if block.skip is not None]
COMMANDS = {text: words for page in pages() for text, words in commands(page)}
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(blocks: list[Block]) -> None:
    """Execute the blocks of a page in their order, in one namespace; compare what a block with prompts shows."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if block.skip is not None:
            continue
        if ">>>" not in block.code:
            exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), namespace)
            continue
        session = doctest.DocTestParser().get_doctest(block.code, namespace, block.where, str(block.page), block.line)
        session.globs = namespace  # the parser copies it: what the session defines is for the blocks after it
        said: list[str] = []
        outcome = doctest.DocTestRunner(optionflags=COMPARED).run(session, out=said.append, clear_globs=False)
        assert not outcome.failed, "".join(said)


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs_as_shown(page: Path, kept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = grouped_conv.get_policy(), grouped_conv.is_strict()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_page(python_blocks(page))
    assert (grouped_conv.get_policy(), grouped_conv.is_strict()) == before, "a page's settings outlive it"


@pytest.mark.parametrize("block", SKIPPED, ids=lambda block: block.where)
def test_python_that_is_not_executed_parses(block: Block) -> None:
    assert block.skip, f"{block.where}: a skipped block needs a reason"
    compile(block.code, block.where, "exec")
    pytest.skip(block.skip)


@pytest.mark.parametrize("text", list(COMMANDS))
def test_commands_exist_with_their_options(text: str) -> None:
    check_command(COMMANDS[text])


def check_command(words: list[str]) -> None:
    """Refuse an unknown sub-command, module, option, or value of an option that has a list of them."""
    if words[0] == "grouped-conv":
        name, *rest = _rest_after_options(grouped_conv_command, words[1:])
        command = grouped_conv_command.get_command(click.Context(grouped_conv_command), name)
        assert command is not None, f"grouped-conv has no sub-command {name}"
        _rest_after_options(command, rest)
    else:
        _rest_after_options(import_module(words[2]).main, words[3:])


def _rest_after_options(command: click.Command, words: list[str]) -> list[str]:
    """What is left of the words once the command's options are taken; values are checked, unless they are files."""
    context = click.Context(command)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.params:
        if not isinstance(parameter.type, click.Path) and isinstance(values.get(parameter.name), str | list):
            parameter.type_cast_value(context, values[parameter.name])
    return rest


@pytest.mark.parametrize(
    "text",
    [
        "grouped-conv tunes alexnet",
        "grouped-conv tune alexnet --efort quick",
        "grouped-conv tune alexnet --effort much",
        "grouped-conv tune alexnets",
        "python -m grouped_conv.bench.static_gates",
        "python -m grouped_conv.bench.static_gate --archs sm_80",
    ],
)
def test_a_command_that_is_wrong_is_noticed(text: str) -> None:
    with pytest.raises((AssertionError, click.UsageError, ImportError)):
        check_command(text.split())


@pytest.mark.parametrize("code", ["1 / 0\n", ">>> 1 + 1\n3\n"])
def test_a_snippet_that_is_wrong_is_noticed(code: str) -> None:
    with pytest.raises((ZeroDivisionError, AssertionError)):
        run_page([Block(ROOT / "README.md", 1, code, None)])


def test_the_reference_names_every_public_name() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    for package in (grouped_conv, grouped_conv.kernels, grouped_conv.autotune):
        missing = [name for name in package.__all__ if f"{package.__name__}.{name}" not in text]
        assert not missing, f"docs/reference says nothing of {package.__name__}: {missing}"


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "docs" / "design" / "map.md").read_text()
    for layer in ("kernels", "autotune", "grouped_conv", "bench"):
        folders = [path.parent.name for path in (ROOT / layer).glob("*/__init__.py") if not path.parent.is_symlink()]
        assert folders
        assert [name for name in folders if f"`{name}/`" not in text] == [], f"of {layer}/"


def test_files_that_are_named_exist() -> None:
    for page in pages():
        named = re.findall(r"`((?:kernels|autotune|grouped_conv|bench|tests|docs|\.ci)/[\w./]*)`", page.read_text())
        missing = [name for name in named if "example" not in name and not (ROOT / name).exists()]
        assert missing == [], f"named in {page.relative_to(ROOT)}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", re.sub(r"`[^`]*`", "", page.read_text()))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
