"""A report's HTML: one page that needs nothing else, one section per problem and device. Every text is escaped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.report import plots as report_plots
from grouped_conv.autotune.report.html import document, picture, table
from grouped_conv.autotune.report.plots import DPI
from grouped_conv.autotune.report.rows import failures, grids, kind_of, ranked, shown_us, trials_of
from grouped_conv.autotune.report.writing import Run
from grouped_conv.autotune.search.search import Search, time_of
from grouped_conv.autotune.search.tuned_table import aten_us_of
from grouped_conv.autotune.store.store import triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.values.problem import ConvProblem

MOST_ROWS = 12
"""Configurations in the table of the best."""
MOST_GRIDS = 3
"""Families whose heat map is shown."""
TIE_RULE = "of ties, fewer registers win, then less shared memory, then fewer warps"


def page(runs: Sequence[Run]) -> str:
    """The whole document."""
    kinds = sorted({kind_of(search) for run in runs for search in run.searches})
    what = f"{' and '.join(kinds)} times" if kinds else "nothing was tuned"
    title = f"grouped-conv tuning report: {what}"
    parts = [(f"s{number}", run, search) for number, (run, search) in enumerate(_searches(runs), 1)]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_about(kinds))} Written {time.strftime("%Y-%m-%d %H:%M %Z")}.</p>',
        *(["<p><strong>Stopped early</strong>: what had ended by then is here.</p>"] if _stopped(runs) else []),
        _contents(parts) if len(parts) > 1 else "",
        *(_section(anchor, run, search) for anchor, run, search in parts),
    ]
    return document(title, filter(None, body))


def _searches(runs: Iterable[Run]) -> list[tuple[Run, Search]]:
    return [(run, search) for run in runs for search in run.searches]


def _stopped(runs: Iterable[Run]) -> bool:
    return any(run.interrupted for run in runs)


def _about(kinds: Sequence[str]) -> str:
    says = {
        "predicted": "Predicted times come from a cost model and the compiled code; nobody timed them.",
        "measured": "Measured times are medians of timings on the device.",
    }
    return " ".join(says[kind] for kind in kinds)


def _contents(parts: Sequence[tuple[str, Run, Search]]) -> str:
    rows = []
    for anchor, run, search in parts:
        trials = trials_of(search)
        best = next(iter(ranked(search, trials)), None)
        us = None if best is None else shown_us(best, search.measures)
        cells = [f'<a href="#{anchor}">{escape(search.name)}</a>', escape(run.device.key)]
        numbers = [_us(us), kind_of(search), str(len(trials)), str(sum(row.failure is not None for row in trials))]
        rows.append([*cells, escape(str(best.config)) if best else "-", *map(escape, numbers)])
    names = ["problem", "device", "best configuration", "best us", "times are", "trials", "failed"]
    return f"<nav><h3>Contents</h3>{table(names, rows, text=names[:3] + names[4:5])}</nav>"


def _section(anchor: str, run: Run, search: Search) -> str:
    trials, kind = trials_of(search), kind_of(search)
    heading = f"{escape(search.name)} on {escape(run.device.name)}"
    parts = [
        f'<section id="{anchor}"><h2>{heading} <span class="kind {kind}">{kind} times</span></h2>',
        f"<p>{escape(in_words(search.problem))}</p>",
        _facts(run, search, trials),
    ]
    if not trials:
        parts.append(f"<p>Nothing was tried; the heuristic's choice is <code>{escape(str(search.default))}</code>.</p>")
    else:
        aten, usable = aten_us_of(search), ranked(search, trials)
        winner = usable[0] if usable else None
        parts += [
            f"<h3>Course of the search: best {kind} time so far</h3>",
            picture(report_plots.course(trials, search.measures, aten, winner), DPI, f"{search.name}: {kind} times"),
            _grids(search, trials, winner),
            _best(search, usable, aten),
            _failed(trials),
        ]
    return "\n".join([*filter(None, parts), "</section>"])


def in_words(problem: ConvProblem) -> str:
    """The problem as a sentence."""
    what = {"forward": "Forward pass", "input_grad": "Gradient of the input", "weight_grad": "Gradient of the weight"}
    groups = f"{problem.in_channels} to {problem.out_channels} channels in {problem.groups} groups"
    if not problem.layout.is_uniform:
        groups = f"channels {problem.layout}"
    elif problem.groups == 1:
        groups = f"{problem.in_channels} to {problem.out_channels} channels, not grouped"
    precision = f" ({problem.precision})" if problem.dtype == "float32" else ""
    inputs = "NHWC" if problem.input_channels_last else "NCHW"
    weights = "KRSC" if problem.weight_channels_last else "KCRS"
    return (
        f"{what[problem.direction]} of a {_by(problem.kernel_size)} convolution, {groups}; {problem.batch} images of "
        f"{_by(problem.in_size)} pixels; stride {_one(problem.stride)}, padding {_one(problem.padding)}, dilation "
        f"{_one(problem.dilation)}; {problem.dtype}{precision}, {inputs} input, {weights} weight; then "
        f"{'nothing' if problem.epilogue.is_identity else problem.epilogue}."
    )


def _by(values: Sequence[int]) -> str:
    return " × ".join(map(str, values))


def _one(values: Sequence[int]) -> str:
    """One number where all are the same."""
    return str(values[0]) if len(set(values)) == 1 else _by(values)


def _facts(run: Run, search: Search, trials: Sequence[Record]) -> str:
    plan = run.plan
    limit = "all configurations" if plan.trials is None else f"at most {plan.trials} trials"
    new = f"{search.ran} tried now, {max(0, len(trials) - search.ran)} known before"
    floors = [row.data["floor_us"] for row in trials if "floor_us" in row.data]
    protocols = sorted({row.protocol for row in trials if row.protocol})
    facts = {
        "problem": f"<code>{escape(str(search.problem))}</code>",
        "device": escape(f"{run.device.name}, known as {run.device.known_as}"),
        "search": escape(f"effort {run.effort} ({limit}), strategy {plan.strategy}, seed {plan.seed}; {new}"),
        "compiled with": escape(f"kernel ABI {ABI_VERSION}, Triton {triton_version()}"),
    }
    if search.measures:
        facts["times"] = escape(f"measured, recipe {', '.join(protocols) or 'none yet'}")
        aten = aten_us_of(search)
        if aten is not None:
            facts["PyTorch (ATen)"] = f"{aten:.1f} us, measured"
    else:
        facts["times"] = f"predicted by cost model {MODEL_VERSION}; none was measured"
    if floors:
        facts["roofline floor"] = f"{floors[0]:.1f} us, computed from peak rates"
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items()) + "</dl>"


def _grids(search: Search, trials: Sequence[Record], winner: Record | None) -> str:
    made = grids(trials, search.measures, winner)
    kind = kind_of(search)
    if not made:
        return ""
    pictures = []
    for grid in made[:MOST_GRIDS]:
        over = " and ".join(filter(None, (grid.down[0], grid.across[0])))
        drawn = report_plots.heat_map(grid, search.measures)
        caption = f"<code>{escape(grid.family)}</code>"
        pictures.append(picture(drawn, DPI, f"best {kind} time of {grid.family} over {over}", caption))
    left = f" {len(made) - MOST_GRIDS} slower families are not shown." if len(made) > MOST_GRIDS else ""
    note = (
        "A blank cell was never tried; ×2 in a corner: two trials of that cell failed; the frame: the winner is in it."
    )
    shown = f'<div class="grids">{"".join(pictures)}</div><p class="soft">{note}{left}</p>'
    return f"<h3>Best {kind} time of each pair of knobs</h3>{shown}"


def _best(search: Search, rows: Sequence[Record], aten: float | None) -> str:
    if not rows:
        return "<p>No trial gave a time.</p>"
    kind = kind_of(search)
    columns = _columns(search.measures, aten)
    listed = enumerate(rows[:MOST_ROWS], 1)
    cells = [[str(place), *(escape(cell(row)) for cell in columns.values())] for place, row in listed]
    faster = sum((time_of(row, search.measures) or 0.0) < (time_of(rows[0], search.measures) or 0.0) for row in rows)
    tie = f'<p class="soft">The winner ties with {faster} faster: {TIE_RULE}.</p>' if faster else ""
    rest = len(rows) - MOST_ROWS
    more = f'<p class="soft">Slower ones that are not listed: {rest}.</p>' if rest > 0 else ""
    shown = table(["", *columns], cells, text=("family", "configuration", "bound by"), first_is_best=True)
    return f"<h3>Best configurations, {kind} times</h3>{shown}{tie}{more}"


def _columns(measures: bool, aten: float | None) -> dict[str, Callable[[Record], str]]:
    """What the table of configurations says, by its heading; figures that nobody has are dashes."""
    columns: dict[str, Callable[[Record], str]] = {
        "family": lambda row: row.config.family,
        "configuration": lambda row: str(row.config),
        f"{'measured' if measures else 'predicted'} us": lambda row: _us(shown_us(row, measures)),
    }
    if measures:
        columns["95 % interval"] = lambda row: f"{_us(row.low_us)} .. {_us(row.high_us)}"
        columns["samples"] = lambda row: str(row.samples)
    if aten is not None:
        columns["PyTorch/ours"] = lambda row: f"{aten / row.measured_us:.2f}" if row.measured_us else "-"
    return {
        **columns,
        "registers": lambda row: str(_resources(row).get("registers", "-")),
        "spills B": lambda row: str(_resources(row).get("spill_bytes", "-")),
        "shared KiB": lambda row: f"{_resources(row)['shared_bytes'] / 1024:.0f}" if _resources(row) else "-",
        "padding eff.": lambda row: (
            f"{row.data['padding_efficiency']:.3f}" if "padding_efficiency" in row.data else "-"
        ),
        "bound by": lambda row: str(row.data.get("bound", "-")),
    }


def _resources(row: Record) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row.data.get("resources", {})
    return found


def _failed(trials: Sequence[Record]) -> str:
    known = failures(trials)
    if not known:
        return '<h3>Failures</h3><p class="soft">None.</p>'
    rows = [[escape(kind), str(count), escape(detail)] for kind, count, detail in known]
    listed = table(["kind", "trials", "the first one"], rows, text=("kind",), prose=("the first one",))
    return f"<h3>Failures by kind</h3>{listed}"


def _us(us: float | None) -> str:
    return "-" if us is None else f"{us:.1f}"
