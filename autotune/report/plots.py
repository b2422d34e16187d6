"""The pictures of a report, as PNG: a search's course, and a family's times over two knobs. Needs matplotlib.

Figures are made without pyplot, so that no window, backend or setting of the caller is touched.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.report.rows import Cell, Grid, best_so_far, shown_us

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, BLUE, RED, GOLD = "#1f2328", "#6e7781", "#0b5cad", "#b3261e", "#d98e00"
DPI = 160
WIDE_RANGE = 8.0
"""Ratio of times above which their axis is logarithmic."""
TALL = 2.0
"""Times above this multiple of the slowest that led at some trial are drawn at the upper edge."""


def course(rows: Sequence[Record], measures: bool, aten_us: float | None, winner: Record | None) -> bytes:
    """Time over trials: each trial's, the best so far, the winner's, failures at the lower edge, PyTorch's own."""
    figure, axes = _figure(7.4, 3.1)
    times = [shown_us(row, measures) for row in rows]
    best = best_so_far(rows, measures)
    numbers = range(1, len(rows) + 1)
    led = [us for us in best if us is not None]
    top = TALL * max([*led, aten_us or 0.0], default=1.0)
    drawn = [(number, min(us, top)) for number, us in zip(numbers, times, strict=True) if us is not None]
    axes.plot(*_columns(drawn), "o", color=BLUE, alpha=0.55, markersize=4, markeredgewidth=0, zorder=3, label="a trial")
    line = [(number, us) for number, us in zip(numbers, best, strict=True) if us is not None]
    axes.step(*_columns(line), where="post", color=BLUE, linewidth=1.8, label="best so far")
    if winner is not None:
        place = [rows.index(winner) + 1], [shown_us(winner, measures) or 0.0]
        axes.plot(*place, "o", color="none", markeredgecolor=GOLD, markersize=9, markeredgewidth=1.8, label="winner")
    if aten_us is not None:
        axes.axhline(aten_us, color=INK, linestyle="--", linewidth=1.2, label=f"PyTorch (ATen), {_number(aten_us)} us")
    failed = [number for number, row in zip(numbers, rows, strict=True) if row.failure is not None]
    if failed:
        edge = [0.02] * len(failed)
        upper = axes.get_xaxis_transform()
        axes.plot(failed, edge, "x", color=RED, markersize=5, transform=upper, clip_on=False, label="failed")
    shown = [us for _, us in drawn] + ([] if aten_us is None else [aten_us])
    _scale(axes, shown)
    axes.set_xlim(0.4, len(rows) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{_kind(measures)} time, us")
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, labelcolor=INK)
    return _png(figure)


def heat_map(grid: Grid, measures: bool) -> bytes:
    """The best time of each pair of values; what was never tried stays blank, failures and the winner are marked."""
    (across, columns), (down, lines) = grid.across, grid.down
    figure, axes = _figure(max(2.6, 1.5 + 0.8 * len(columns)), 1.2 + 0.5 * len(lines))
    times = [cell.us for cell in grid.cells.values() if cell.us is not None]
    norm = _norm(times)
    for x, column in enumerate(columns):
        for y, line in enumerate(lines):
            cell = grid.cells.get((column, line))
            if cell is not None:
                _draw(axes, x, y, cell, norm, grid.winner == (column, line))
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), [_value(value) for value in columns])
    axes.set_yticks(range(len(lines)), [_value(value) for value in lines])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(f"best {_kind(measures)} time, us", fontsize=9, color=INK, loc="left")
    return _png(figure)


def _draw(axes: Axes, x: int, y: int, cell: Cell, norm: Normalize, won: bool) -> None:
    corner = (x - 0.46, y - 0.46)
    count = sum(cell.failures.values())
    if cell.us is None:
        axes.add_patch(
            Rectangle(corner, 0.92, 0.92, facecolor="#fbeae9", edgecolor="#eec4c0", hatch="////", linewidth=0.0)
        )
        words = ", ".join(cell.failures)
        axes.text(x, y, words, ha="center", va="center", color=RED, fontsize=7, backgroundcolor="#fbeae9")
        return
    colour = colormaps["Blues_r"](0.05 + 0.7 * float(norm(cell.us)))
    frame = {"edgecolor": GOLD, "linewidth": 2.0} if won else {"linewidth": 0.0}
    axes.add_patch(Rectangle(corner, 0.92, 0.92, facecolor=colour, **frame))
    ink = "white" if norm(cell.us) < 0.5 else INK
    axes.text(x, y, _number(cell.us), ha="center", va="center", color=ink, fontsize=8)
    if count:
        axes.text(x + 0.42, y - 0.4, f"×{count}", ha="right", va="top", color="#ffb4ab" if ink == "white" else RED,
                  fontsize=6.5)  # fmt: skip


def _norm(times: Sequence[float]) -> Normalize:
    if not times or min(times) == max(times):
        return Normalize(0, 2 * max(times, default=1.0) + 1)
    kind = LogNorm if max(times) > WIDE_RANGE * min(times) else Normalize
    return kind(min(times), max(times))


def _scale(axes: Axes, times: Sequence[float]) -> None:
    """A linear axis from zero would hide what a search gains: the axis holds the times, logarithmic if they differ."""
    if not times:
        return
    low, high = min(times), max(times)
    if high > WIDE_RANGE * low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low * 0.8, high * 1.15)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
    else:
        room = 0.12 * ((high - low) or low or 1.0)
        axes.set_ylim(low - 1.5 * room, high + room)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#afb8c1")
    axes.tick_params(colors=MUTED, labelsize=8, labelcolor=INK)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    return figure, axes


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    return picture.getvalue()


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [number for number, _ in pairs], [us for _, us in pairs]


def _kind(measures: bool) -> str:
    return "measured" if measures else "predicted"


def _number(us: float) -> str:
    return f"{us:.0f}" if us >= 1000 else f"{us:.3g}"


def _value(value: Any) -> str:
    """A knob's value; the empty cache policy has a name."""
    return "" if value is None else str(value) or "none"
