"""The HTML that a report is made of: the document with its style, tables, and pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 0 auto; padding: 2rem 1.5rem;
       max-width: 64rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 0; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } .soft { color: #57606a; } code { font: .86em ui-monospace, monospace; }
section { border-top: 1px solid #d8dee4; margin-top: 2.2rem; padding-top: 1.4rem; }
.kind { display: inline-block; border-radius: 1em; padding: 0 .7em; font-size: .78rem; font-weight: 600;
        vertical-align: .15em; background: #fff3d6; color: #7a4d00; }
.kind.measured { background: #dcf3e4; color: #0f5c2e; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: .8rem 0; font-size: .9rem; }
dt { color: #57606a; } dd { margin: 0; }
table { border-collapse: collapse; font-size: .82rem; } .wide { overflow-x: auto; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #eaeef2; white-space: nowrap; }
th { font-weight: 600; color: #57606a; } th.text, td.text { text-align: left; } td.prose { white-space: normal; }
tr.best td { background: #eef5fd; font-weight: 600; }
figure { margin: .3rem 0; } figure img { max-width: 100%; height: auto; display: block; }
.grids { display: flex; flex-wrap: wrap; gap: 1rem 2rem; } figcaption { font-size: .82rem; color: #57606a; }
nav td:first-child a { text-decoration: none; } a { color: #0b5cad; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A page that needs no other file; `body` is HTML already."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    parts = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>{head}<style>{STYLE}</style></head>
<body>
{parts}
</body>
</html>
"""


def table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Sequence[str] = (),
    prose: Sequence[str] = (),
    first_is_best: bool = False,
) -> str:
    """A table of cells that are HTML already.

    Args:
        names: of the columns.
        text: names of those that are aligned to the left.
        prose: names of those whose lines may break, too.
        first_is_best: whether the first row is the winner's.
    """

    def cell(tag: str, name: str, value: str) -> str:
        kind = "text prose" if name in prose else "text" if name in text else ""
        return f"<{tag} class='{kind}'>{value}</{tag}>" if kind else f"<{tag}>{value}</{tag}>"

    head = "".join(cell("th", name, escape(name)) for name in names)
    lines = []
    for number, row in enumerate(rows):
        best = ' class="best"' if first_is_best and number == 0 else ""
        cells = "".join(cell("td", name, value) for name, value in zip(names, row, strict=True))
        lines.append(f"<tr{best}>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def picture(png: bytes, dpi: int, alt: str, caption: str = "") -> str:
    """An image inside the page, of the size it was drawn for; its pixels are finer than most screens'.

    Args:
        dpi: pixels per inch.
        caption: HTML below it.
    """
    width = int.from_bytes(png[16:20], "big")  # where PNG's first chunk has it
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    source = f'src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width * 96 // dpi}"'
    return f"<figure><img {source}>{below}</figure>"
