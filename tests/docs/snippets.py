"""What a page of the documentation shows: its Python blocks, and the commands it tells the reader to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT

_BLOCK = re.compile(
    r"(?:^<!-- skip: *(?P<skip>.*?) *-->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_INLINE = re.compile(r"`((?:grouped-conv|python -m grouped_conv)[^`\n]*)`")
_ASSIGNMENT = re.compile(r"^\w+=\S* +")


@dataclass(frozen=True)
class Block:
    """A fenced block of Python.

    Attributes:
        page: its file.
        line: number of its first line of code, from 1.
        code: its text.
        skip: why it is not executed; empty when it is, None where no marker is.
    """

    page: Path
    line: int
    code: str
    skip: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README and every page of the site."""
    site = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *site]


def python_blocks(page: Path) -> list[Block]:
    """The page's Python, in its order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["code"], found["skip"])
        for found in _BLOCK.finditer(text)
        if found["language"] in ("python", "pycon")
    ]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Our commands in the page's shell blocks and inline code: the text, and its words."""
    text = page.read_text()
    lines: list[str] = []
    for found in _BLOCK.finditer(text):
        if found["language"] in ("sh", "console"):
            lines += found["code"].replace("\\\n", " ").splitlines()
    for line in [*lines, *_INLINE.findall(text)]:
        for part in re.split("&&|;", line.removeprefix("$ ")):
            command = _ASSIGNMENT.sub("", part.strip())
            if command.startswith(("grouped-conv ", "python -m grouped_conv")):
                yield command, shlex.split(command, comments=True)
