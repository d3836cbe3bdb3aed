"""The tables of results: verdicts, accuracies, efficiencies and prices, from the findings."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from eval.comparisons import comparisons
from eval.currencies import (
    ETA_CURRENCIES,
    Currency,
    amount,
    amount_bounds,
    figures,
    interval,
    percent,
    share,
)
from eval.findings import Findings
from eval.frontier import dominated
from eval.metrics import best_eta, cost_per_correct, eta, spent_currencies
from eval.table import Entry, Table
from eval.verdict import TIE, Verdict


def verdict_table(findings: Findings) -> Table:
    """Say who reaches the threshold at least cost: a row per currency, a column per task."""
    tasks = list(dict.fromkeys(verdict.task for verdict in findings.verdicts))
    by_place = {(v.currency.column, v.task): v for v in findings.verdicts}
    rows = [
        [
            Entry(currency.title, detail=_measured_note(currency)),
            *(_verdict_entry(by_place[currency.column, t], findings.threshold) for t in tasks),
        ]
        for currency in ETA_CURRENCIES
        if tasks
    ]
    return Table(
        title=f"Least cost at {100 * findings.threshold:g}% accuracy or more",
        columns=["Currency", *tasks],
        rows=rows,
        names=1 + len(tasks),
    )


def _measured_note(currency: Currency) -> tuple[str, ...]:
    return (f"measured; within {100 * TIE:g}% is a tie",) if currency.measured else ()


def _verdict_entry(verdict: Verdict, threshold: float) -> Entry:
    currency = verdict.currency
    if verdict.closest is not None:
        return Entry("none", "faint", (f"most accurate: {_said(verdict.closest, currency)}",))
    if not verdict.least:
        return Entry("not measured", "faint")
    first = verdict.least[0]
    names = " and ".join(dict.fromkeys(row["label"] for row in verdict.least))
    detail = [_winner(row, verdict, threshold) for row in verdict.least]
    if verdict.next is not None:
        ratio = verdict.next["cost"] / first["cost"] if first["cost"] else None
        detail.append(f"next: {_said(verdict.next, currency, ratio)}")
    return Entry(names, "strong", tuple(detail))


def _winner(row: Mapping[str, Any], verdict: Verdict, threshold: float) -> str:
    whose = f"{row['label']}, " if len(verdict.least) > 1 else ""
    unsure = "" if row["sure"] else f", interval reaches below {100 * threshold:g}%"
    cost = amount(row["cost"], verdict.currency)
    return f"{whose}{row['budget']}: {cost}, {_accuracy(row)}{unsure}"


def _said(row: Mapping[str, Any], currency: Currency, ratio: float | None = None) -> str:
    cost = amount(row[currency.column], currency) + (f" ({figures(ratio)}×)" if ratio else "")
    return f"{row['label']}, {row['budget']}: {cost}, {_accuracy(row)}"


def _accuracy(row: Mapping[str, Any]) -> str:
    return share(row["accuracy"], row["low"], row["high"])


def point_tables(findings: Findings, currencies: Sequence[Currency]) -> list[Table]:
    """List the numbers of the frontier figure, a table per task and a column per currency."""
    return [
        Table(
            title=f"{task['task'][0]}: accuracy and mean cost of an answer",
            columns=["Backbone", "Budget", "Accuracy (%)", *(c.title for c in currencies)],
            grouped=True,
            rows=_point_rows(task, currencies),
            note="Bold costs: on the frontier of that cost. Grey accuracies: cannot be told from "
            f"guessing, which reaches {percent(task.select(pl.col('chance').mean()).item())}.",
        )
        for task in findings.points.partition_by("task", maintain_order=True)
    ]


def _point_rows(points: pl.DataFrame, currencies: Sequence[Currency]) -> list[list[Entry]]:
    on_frontier = {c.column: _on_frontier(points, c) for c in currencies}
    return [
        [
            Entry(row["label"]),
            Entry(row["budget"]),
            _accuracy_entry(row),
            *(
                Entry(amount(row[c.column], c), "strong" if on_frontier[c.column][place] else "")
                for c in currencies
            ),
        ]
        for place, row in enumerate(points.iter_rows(named=True))
    ]


def _on_frontier(points: pl.DataFrame, currency: Currency) -> list[bool]:
    # A point without the cost is nowhere, so an infinite cost keeps it from beating any other.
    cost = points[currency.column]
    beaten = dominated(cost.fill_null(float("inf")), points["accuracy"])
    known = cost.is_not_null().to_list()
    return [there and not lost for there, lost in zip(known, beaten, strict=True)]


def _accuracy_entry(row: Mapping[str, Any]) -> Entry:
    text = interval(row["accuracy"], row["low"], row["high"])
    return Entry(text, "faint" if row["low"] <= row["chance"] else "")


def level_tables(findings: Findings) -> list[Table]:
    """List accuracy per level and budget with intervals, a table per task."""
    return [_level_table(task) for task in findings.cells.partition_by("task", maintain_order=True)]


def _level_table(cells: pl.DataFrame) -> Table:
    levels = cells.group_by("level").agg(
        pl.col("beyond").any(), pl.col("train_only").any(), pl.col("items").max()
    )
    heads = [_level_head(row) for row in levels.sort("level").iter_rows(named=True)]
    rows = []
    for (label, budget), line in cells.group_by("label", "budget", maintain_order=True):
        by_level = {row["level"]: row for row in line.iter_rows(named=True)}
        entries = [
            _accuracy_entry(by_level[level]) if level in by_level else Entry("–", "faint")
            for level in levels["level"].sort()
        ]
        rows.append([Entry(str(label)), Entry(str(budget)), *entries])
    return Table(
        title=f"{cells['task'][0]}: accuracy by level (%)",
        columns=["Backbone", "Budget", *heads],
        grouped=True,
        rows=rows,
        note="Grey: no better than chance. Train-only levels are too small to be split: their "
        "questions may have been learned by heart.",
    )


def _level_head(row: Mapping[str, Any]) -> str:
    kind = " (train-only)" if row["train_only"] else " (harder)" if row["beyond"] else ""
    return f"Level {row['level']}{kind}, n = {row['items']:,}"


def best_eta_table(findings: Findings) -> Table:
    """List each backbone's efficiency at its best budget, a column per currency."""
    best = best_eta(findings.points)
    rows = []
    for run in findings.runs:
        own = {row["currency"]: row for row in best.filter(run=run.name).iter_rows(named=True)}
        rows.append([Entry(run.label), *(_eta_entry(own.get(c.column)) for c in ETA_CURRENCIES)])
    return Table(
        title="Efficiency η at each backbone's best budget",
        columns=["Backbone", *(f"per {c.scale_name}" for c in ETA_CURRENCIES)],
        rows=rows,
        note="η: the mean over tasks of chance-corrected accuracy divided by mean cost. Higher is "
        "better; compare down a column only.",
        names=1,
    )


def _eta_entry(row: Mapping[str, Any] | None, with_budget: bool = True) -> Entry:
    if row is None or row["eta"] is None:
        return Entry("–", "faint")
    text = f"{figures(row['eta'])} [{figures(row['low'])}, {figures(row['high'])}]"
    detail = (row["budget"],) if with_budget else ()
    return Entry(text, "faint" if row["low"] == 0 else "", detail)


def eta_table(findings: Findings) -> Table:
    """List the efficiency at every budget."""
    tables = [eta(findings.points, currency) for currency in ETA_CURRENCIES]
    rows = []
    for place, first in enumerate(tables[0].iter_rows(named=True)):
        tasks = "" if first["complete"] else f" ({first['tasks']} of {len(findings.tasks)} tasks)"
        entries = [_eta_entry(table.row(place, named=True), False) for table in tables]
        rows.append([Entry(first["label"]), Entry(first["budget"] + tasks), *entries])
    return Table(
        title="Efficiency η at every budget",
        columns=["Backbone", "Budget", *(f"per {c.scale_name}" for c in ETA_CURRENCIES)],
        grouped=True,
        rows=rows,
        note="Grey: the interval of the accuracy includes chance.",
    )


def cost_tables(findings: Findings) -> list[Table]:
    """List the cost of a correct answer, a table per task."""
    spent = spent_currencies(findings.points)
    shown = [currency for currency in ETA_CURRENCIES if currency in spent]
    tasks = findings.points.partition_by("task", maintain_order=True)
    return [_cost_table(task, shown) for task in tasks]


def _cost_table(points: pl.DataFrame, currencies: Sequence[Currency]) -> Table:
    priced = {c.column: cost_per_correct(points, c) for c in currencies}
    rows = []
    for place, row in enumerate(points.iter_rows(named=True)):
        faint = "faint" if row["low"] <= row["chance"] else ""
        prices = [_price(priced[c.column].row(place, named=True), c, faint) for c in currencies]
        rows.append([Entry(row["label"]), Entry(row["budget"]), *prices])
    return Table(
        title=f"{points['task'][0]}: cost of a correct answer",
        columns=["Backbone", "Budget", *(c.title for c in currencies)],
        grouped=True,
        rows=rows,
        note="Total cost of all answers, wrong ones included, divided by the number of right ones. "
        "Grey: no better than chance, so what is bought are lucky guesses.",
    )


def _price(row: Mapping[str, Any], currency: Currency, tone: str) -> Entry:
    if row["per_correct"] is None:
        return Entry("–", "faint")
    price = row["per_correct"]
    bounds = amount_bounds(row["per_low"], row["per_high"], price, currency)
    return Entry(amount(price, currency), tone, (bounds,))


def comparison_table(findings: Findings) -> Table:
    """List how far each backbone is behind the most accurate one, on the same questions."""
    rows = []
    for best, other, gap in comparisons(findings.ledger, findings.points):
        points = f"{100 * gap.difference:.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}]"
        p_value = "< 0.001" if gap.p_value < 0.001 else f"{gap.p_value:.3f}"
        rows.append(
            [
                Entry(best["task"]),
                Entry(f"{best['label']}, {best['budget']}"),
                Entry(f"{other['label']}, {other['budget']}"),
                Entry(points, "" if gap.low > 0 else "faint"),
                Entry(p_value),
                Entry(f"{gap.items:,}"),
            ]
        )
    return Table(
        title="Most accurate budgets compared on the same questions",
        columns=["Task", "Most accurate", "Compared with", "Lead (points)", "p", "Questions"],
        grouped=True,
        rows=rows,
        note="Paired bootstrap (95%) and sign-flip test. Budgets were picked on these questions, "
        "and p is not corrected for the number of comparisons. Grey: may be luck.",
        names=3,
    )
