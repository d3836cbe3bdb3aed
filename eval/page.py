"""The report as one HTML file that opens offline: markup, style, script, data and plotly inside."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from plotly.offline import get_plotlyjs

from eval import markup
from eval.currencies import CURRENCIES
from eval.faithfulness_table import faithfulness_tables
from eval.figures import frontier_file, level_file
from eval.findings import Findings
from eval.glossary import GLOSSARY
from eval.group_costs import cost_of_groups
from eval.interactive import FRONTIER_GROUP, frontier_panel, levels_panel
from eval.loops_and_layers import gap_table
from eval.mechanism_tables import mechanism_level_tables, mechanism_table, rate_table
from eval.metrics import spent_currencies
from eval.run_tables import backbone_table, provenance_table, sample_table
from eval.sources import source_table
from eval.stopping import stopping_tables
from eval.tables import (
    best_eta_table,
    comparison_table,
    cost_tables,
    eta_table,
    level_tables,
    point_tables,
    verdict_table,
)

_HERE = Path(__file__).parent
# The page asks nothing of any network, whatever a model wrote into it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def render_page(
    findings: Findings,
    made: Mapping[str, str],
    samples: int,
    picture: bytes,
    grouped: Sequence[Path] = (),
) -> str:
    """Write the whole report.

    Args:
        findings: what to report.
        made: how the report was made (command, date, versions), for the provenance.
        samples: right and wrong answers to show of each backbone.
        picture: a PNG for readers without JavaScript; empty for none.
        grouped: PNGs of the runs that are taken together.

    Returns:
        A complete HTML document that needs no other file.
    """
    if findings.shows_groups_only:
        return _page_of_groups(findings, made, grouped)
    parts = [
        _opening(findings),
        _groups(findings, grouped),
        _frontier(findings, picture) if not findings.points.is_empty() else "",
        _levels(findings),
        _thoughts(findings),
        _sources(findings),
        _section("The backbones", markup.table(backbone_table(findings), heading=False)),
        _efficiency(findings) if not findings.points.is_empty() else "",
        _samples(findings, samples),
        _provenance(findings, made),
        _section("How to read this", _glossary()),
    ]
    data = markup.script_data("figures", _figures(findings))
    return (
        f'<!DOCTYPE html><html lang="en"><head>{_head(findings)}</head><body>{"".join(parts)}'
        f"{data}<script>{get_plotlyjs()}</script>"
        f"<script>{_file('page.js')}</script></body></html>\n"
    )


def _page_of_groups(findings: Findings, made: Mapping[str, str], grouped: Sequence[Path]) -> str:
    """The page of a sweep, whose runs are too many to be shown one by one."""
    lead = f"{len(findings.runs)} runs, {findings.ledger.height:,} answers."
    alone = "Frontiers, costs and samples of single runs: python -m eval.report runs=RUN[,RUN ...]"
    parts = [
        f'<h1>Which backbone can do what</h1><p class="lead">{markup.text(lead)}</p>',
        _groups(findings, grouped),
        _thoughts(findings),
        markup.paragraphs([*findings.notes(), alone]),
        _provenance(findings, made),
    ]
    head = _head(findings, "Which backbone can do what")
    body = "".join(parts)
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _groups(findings: Findings, grouped: Sequence[Path]) -> str:
    """Runs that differ in seed and learning rate, taken together; nothing where there are none."""
    found = findings.mechanisms
    stops = _stops(findings, [path for path in grouped if path.name.startswith("stopping")])
    if found is None:
        return stops
    drawn = [path for path in grouped if not path.name.startswith("stopping")]
    pictures = "".join(_picture(path) for path in drawn if path.suffix == ".png")
    levels = "".join(map(markup.table, mechanism_level_tables(found)))
    rates = rate_table(found)
    costs = [] if findings.grouped is None else cost_of_groups(findings.grouped)
    gaps = gap_table(found, findings.runs, findings.cells)
    return (
        _section(
            "Seeds taken together",
            markup.table(mechanism_table(found), css="verdict", heading=False)
            + pictures
            + (markup.table(gaps) if gaps else "")
            + "".join(map(markup.table, costs))
            + markup.folded("Accuracy by level", levels)
            + (markup.folded("Every learning rate", markup.table(rates)) if rates else ""),
        )
        + stops
    )


def _stops(findings: Findings, files: Sequence[Path]) -> str:
    """When to stop looping; nothing where no rule was tried."""
    tables = stopping_tables(findings.ways)
    if not tables:
        return ""
    pictures = "".join(_picture(path) for path in files if path.suffix == ".png")
    return _section("When to stop", pictures + "".join(map(markup.table, tables)))


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    name = markup.text(path.name)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{name}" style="max-width:100%">'
        f'<figcaption>As a file: <a href="{quote(path.name)}">{name}</a>.</figcaption></figure>'
    )


def _head(findings: Findings, says: str = "What a correct answer costs") -> str:
    return head(f"{says}: {', '.join(findings.tasks)}")


def head(title: str, style: str = "") -> str:
    """Write the head of a page in the report's look, with more style behind it."""
    return (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup.text(title)}</title><style>{_file('page.css')}{style}</style>"
    )


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _opening(findings: Findings) -> str:
    count = len(findings.runs)
    lead = (
        f"{count} backbone{'s' if count != 1 else ''}, {findings.ledger.height:,} answers. "
        f"Cheapest budget whose accuracy is at least {100 * findings.threshold:g}%, with 95% "
        "intervals:"
    )
    verdicts = markup.table(verdict_table(findings), css="verdict", heading=False)
    return (
        "<h1>What a correct answer costs</h1>"
        f'<p class="lead">{markup.text(lead)}</p>{verdicts}{markup.paragraphs(findings.notes())}'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{markup.text(title)}</h2>{content}</section>"


def _frontier(findings: Findings, picture: bytes) -> str:
    currencies = spent_currencies(findings.points)
    unspent = [c.title.lower() for c in CURRENCIES if c not in currencies]
    nothing = f" Not drawn, since nothing was spent or measured: {', '.join(unspent)}."
    caption = (
        "A point is a backbone at a budget: its mean cost and its accuracy, with a 95% Wilson "
        "interval. The black line is the frontier over all of them, a step at each point that "
        "nothing beats; dominated points are faded. Thin lines are each backbone's own frontier. "
        "The dashed line is guessing." + (nothing if unspent else "") + f" {findings.sizes()}"
    )
    tables = "".join(map(markup.table, point_tables(findings, currencies)))
    pngs = "".join(_png(c.column, frontier_file(c)) for c in currencies)
    choices = markup.choices("Cost", {c.column: c.title for c in currencies})
    return _section(
        "Accuracy against cost",
        f'<figure data-figure="frontier">{choices}{markup.legend(findings.styles, FRONTIER_GROUP)}'
        f'<div class="panels"></div>{_fallback(picture)}'
        f"<figcaption>{markup.text(caption)} {pngs}</figcaption></figure>"
        f"{markup.folded('The numbers of this figure', tables)}",
    )


def _png(choice: str, name: str) -> str:
    link = f'<a href="{quote(name)}">{markup.text(name)}</a>'
    return f'<span data-choice="{markup.text(choice)}">As a picture: {link}. </span>'


def _fallback(picture: bytes) -> str:
    if not picture:
        return ""
    data = base64.b64encode(picture).decode("ascii")
    return (
        f'<noscript><img src="data:image/png;base64,{data}" alt="Accuracy against cost"></noscript>'
    )


def _families(cells: pl.DataFrame) -> list[str]:
    return cells["family"].unique(maintain_order=True).to_list()


def _levels(findings: Findings) -> str:
    families = {family: family for family in _families(findings.cells)}
    caption = (
        "Hollow markers: train-only levels, too small to be split, so that a right answer may have "
        "been learned by heart. Shaded: harder than anything trained on. Between them lie the "
        "held-out levels, which the other figures pool. Broken lines: more loops."
    )
    links = ", ".join(
        f'<a href="{quote(level_file(task))}">{markup.text(level_file(task))}</a>'
        for task in findings.tasks
    )
    tables = "".join(map(markup.table, level_tables(findings)))
    return _section(
        "Accuracy against level",
        f'<figure data-figure="levels">{markup.choices("Budget", families)}'
        f'{markup.legend(findings.styles)}<div class="panels"></div>'
        f"<figcaption>{markup.text(caption)} As pictures: {links}.</figcaption></figure>"
        f"{markup.folded('The numbers of this figure', tables, is_open=True)}",
    )


def _thoughts(findings: Findings) -> str:
    """What changed thoughts do to answers; nothing where that was not asked for."""
    tables = "".join(map(markup.table, faithfulness_tables(findings.checks)))
    return _section("Do answers depend on their thoughts?", tables) if tables else ""


def _sources(findings: Findings) -> str:
    """Accuracy and bits per byte on what the runs were trained on."""
    table = source_table(findings)
    return "" if table is None else _section(table.title, markup.table(table, heading=False))


def _efficiency(findings: Findings) -> str:
    every = markup.folded("At every budget", markup.table(eta_table(findings), heading=False))
    costs = "".join(map(markup.table, cost_tables(findings)))
    parts = [markup.table(best_eta_table(findings)), every, costs]
    if len(findings.runs) > 1:
        parts.append(markup.table(comparison_table(findings)))
    return _section("Efficiency", "".join(parts))


def _samples(findings: Findings, count: int) -> str:
    tables = [sample_table(run, count) for run in findings.runs]
    shown = [
        markup.folded(run.label, markup.table(table, css="samples", heading=False))
        for run, table in zip(findings.runs, tables, strict=True)
        if table is not None
    ]
    return _section("What they wrote", "".join(shown)) if shown and count else ""


def _provenance(findings: Findings, made: Mapping[str, str]) -> str:
    facts = markup.table(provenance_table(findings, made), css="provenance", heading=False)
    configs = "".join(
        markup.folded(f"config.yaml of {run.label}", f"<pre>{markup.text(run.config)}</pre>")
        for run in findings.runs
        if run.config
    )
    return _section("Provenance", facts + configs)


def _glossary() -> str:
    entries = [f"<dt>{markup.text(t)}</dt><dd>{markup.text(d)}</dd>" for t, d in GLOSSARY]
    return f"<dl>{''.join(entries)}</dl>"


def _figures(findings: Findings) -> dict[str, Any]:
    """Every panel of the interactive figures: figure -> choice -> a panel per task."""
    points = findings.points
    by_task = points.partition_by("task", maintain_order=True)
    cells = findings.cells.partition_by("family", "task", maintain_order=True)
    return {
        "frontier": {
            currency.column: [frontier_panel(task, currency, findings.styles) for task in by_task]
            for currency in spent_currencies(points)
        },
        "levels": {
            family: [
                levels_panel(part, findings.styles) for part in cells if part["family"][0] == family
            ]
            for family in _families(findings.cells)
        },
    }
