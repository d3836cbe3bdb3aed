"""What a run was trained on, source by source, and how well it does on each."""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from eval.checkpoint import CORPUS_FILE
from eval.currencies import interval, percent
from eval.findings import Findings
from eval.runs import Run
from eval.statistics import wilson
from eval.table import Entry, Table
from eval.texts import TextScore, read_scores


def source_table(findings: Findings) -> Table | None:
    """Accuracy on each source of the corpus, bits per byte on each text.

    None where every run has a single source, about which the other tables say it all.
    """
    rows = [row for run in findings.runs for row in _rows(run)]
    if len(rows) <= len(findings.runs):
        return None
    return Table(
        title="By source of the corpus",
        columns=["Backbone", "Source", "What it is", "Tokens", "Accuracy (%)", "Bits per byte"],
        grouped=True,
        rows=rows,
        names=3,
        note="Accuracy: held-out questions of the levels that the source was trained on, in its own"
        " trace mode, at the backbone's own depth, one sample, with the 95% Wilson interval; grey:"
        " no better than chance. Bits per byte: held-out documents, with a 95% bootstrap interval."
        " Tokens: share of the corpus.",
    )


def _rows(run: Run) -> list[list[Entry]]:
    path = run.folder / CORPUS_FILE
    if not path.is_file():
        return []
    manifest = json.loads(path.read_text())
    scores = {score.source: score for score in read_scores(run.folder) or []}
    counts = manifest["splits"]["train"]["sources"]
    total = sum(count["tokens"] for count in counts.values())
    rows = []
    for name, source in manifest["sources"].items():
        share = Entry(percent(counts.get(name, {"tokens": 0})["tokens"] / total))
        head = [Entry(run.label), Entry(name), Entry(_kind(source)), share]
        rows.append([*head, _accuracy(run.ledger, source), _bits(scores.get(name))])
    return rows


def _kind(source: Mapping[str, Any]) -> str:
    return f"{source['task']}, trace {source['trace']}" if source["task"] else "text"


def _accuracy(ledger: pl.DataFrame, source: Mapping[str, Any]) -> Entry:
    """Of the questions that are like the source's documents."""
    scheduled = [step["levels"] or [] for step in source.get("schedule", [])]
    levels = {*source["levels"], *(level for step in scheduled for level in step)}
    asked = ledger.filter(
        pl.col("task") == source["task"],
        pl.col("level").is_in(sorted(levels)),
        pl.col("split") != "train",
        pl.col("budget_trace") == source["trace"],
        pl.col("budget_loops").is_null(),
        pl.col("budget_forced_end").is_null(),
        pl.col("budget_stop").is_null(),
        pl.col("budget_samples") == 1,
    )
    if asked.is_empty():
        return Entry("–", "faint", ("not asked",) if source["task"] else ())
    right, items = int(asked["correct"].sum()), asked.height
    low, high = (float(bound) for bound in wilson(right, items))
    chance = float(asked["chance"].cast(pl.Float64).mean() or 0.0)  # pyright: ignore
    detail = (f"n = {items:,}, chance {percent(chance)}",)
    return Entry(interval(right / items, low, high), "faint" if low <= chance else "", detail)


def _bits(score: TextScore | None) -> Entry:
    if score is None:
        return Entry("–", "faint")
    text = f"{score.bits_per_byte:.3f} [{score.low:.3f}, {score.high:.3f}]"
    return Entry(text, "", (f"{score.bytes:,} bytes",))
