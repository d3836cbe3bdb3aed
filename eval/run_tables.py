"""The tables about who answered and how: backbones, provenance, and samples of their output."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from eval.currencies import scaled
from eval.findings import Findings
from eval.metrics import budget_name
from eval.runs import Run
from eval.table import Entry, Table

# What cost.json is known to say, with its heading, in the order in which people ask. What it says
# beyond that is shown after these, under its own key.
_FACTS = {
    "parameters": "Parameters",
    "non_embedding_parameters": "Parameters without embedding",
    "layout": "Layout",
    "loops": "Loops",
    "mean_train_loops": "Loops in training (mean)",
    "train_tokens": "Training tokens",
    "train_flops": "Training FLOPs",
    "peak_learning_rate": "Learning rate (peak)",
    "peak_lr": "Learning rate (peak)",
    "seed": "Seed",
    "model_flops_per_token": "Model FLOPs per token",
    "state_bytes": "State at the training context",
    "weight_bytes": "Weights",
}
_HIDDEN = ("backbone",)
_LONGEST = 400


def backbone_table(findings: Findings) -> Table:
    """List what is known about each backbone, a row per fact and a column per backbone."""
    facts = [_flat(run.cost) for run in findings.runs]
    said = dict.fromkeys(key for fact in facts for key in fact if key not in _HIDDEN)
    keys = [*(key for key in _FACTS if key in said), *(key for key in said if key not in _FACTS)]
    rows = [
        [Entry(_FACTS.get(key, key)), *(_fact(key, fact.get(key)) for fact in facts)]
        for key in keys
    ]
    held = dict(findings.ledger.group_by("run").agg(pl.col("state_bytes").max()).iter_rows())
    most = [Entry(_size(held[run.name])) for run in findings.runs]
    return Table(
        title="The backbones",
        columns=["", *(run.label for run in findings.runs)],
        rows=[*rows, [Entry("State, most held by an answer"), *most]],
        note="State grows with the context in attention and stays the same in a recurrent mixer.",
        names=1,
    )


def _fact(key: str, value: Any) -> Entry:
    if value is None:
        return Entry("–", "faint")
    if isinstance(value, list):
        return Entry(", ".join(map(str, value)))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = str(value)
        # A hash is told apart by its beginning.
        return Entry(f"{text[:12]}…" if re.fullmatch("[0-9a-f]{40,}", text) else text)
    if key.endswith("bytes"):
        return Entry(_size(value))
    if isinstance(value, int) and abs(value) < 1e9:
        return Entry(f"{value:,}")
    return Entry("".join(scaled(value)) if abs(value) >= 1e4 else f"{value:.4g}")


def _size(count: float) -> str:
    number, prefix = scaled(count, binary=True)
    return f"{number}\u202f{prefix}B"


def provenance_table(findings: Findings, made: Mapping[str, str]) -> Table:
    """List where the numbers come from: a row per fact, once where all runs agree.

    Args:
        findings: the runs.
        made: facts about the making of the report itself, such as its command and date.
    """
    flat = {run.label: _flat(run.environment) for run in findings.runs}
    keys = list(dict.fromkeys(key for facts in flat.values() for key in facts))
    rows = [
        _shared_row(key, {label: facts.get(key) for label, facts in flat.items()}) for key in keys
    ]
    seeds = findings.ledger["seed"].unique().sort().to_list()
    rows += [
        _shared_row("training seed", {run.label: run.cost.get("seed") for run in findings.runs}),
        [Entry("evaluation seed"), Entry(", ".join(map(str, seeds)))],
        [Entry("answers"), Entry(f"{findings.ledger.height:,}")],
        [Entry("run folders"), Entry("", detail=tuple(str(run.folder) for run in findings.runs))],
        *([Entry(f"report: {key}"), Entry(value)] for key, value in made.items()),
    ]
    return Table(title="Provenance", columns=["What", "Value"], rows=rows)


def _shared_row(name: str, by_label: Mapping[str, Any]) -> list[Entry]:
    texts = {label: "–" if value is None else str(value) for label, value in by_label.items()}
    if len(set(texts.values())) == 1:
        return [Entry(name), Entry(next(iter(texts.values())))]
    return [
        Entry(name),
        Entry("", detail=tuple(f"{label}: {text}" for label, text in texts.items())),
    ]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def sample_table(run: Run, count: int) -> Table | None:
    """Show some right and some wrong answers to held-out questions, over different budgets.

    The same ledger always shows the same samples: none is picked by how it looks.

    Args:
        run: whose answers.
        count: how many right ones, and how many wrong ones, at most.

    Returns:
        The table, or None where the ledger holds no texts.
    """
    texts = ("question_text", "answer_text", "output_text")
    if not set(texts) <= set(run.ledger.columns):
        return None
    held_out = run.ledger.filter(~pl.col("train_only"))
    rows = [row for right in (True, False) for row in _spread(held_out, right, count)]
    return Table(
        title=f"{run.label}: samples",
        columns=["Verdict", "Task, level, budget", "Question", "Right answer", "Written"],
        rows=[_sample(row) for row in rows],
        names=5,
    )


def _spread(answers: pl.DataFrame, correct: bool, count: int) -> Sequence[dict[str, Any]]:
    """The first answer of every cell, thinned evenly to `count`."""
    chosen = answers.filter(pl.col("correct") == correct)
    cell = ("task", "level", *(name for name in answers.columns if name.startswith("budget_")))
    firsts = chosen.group_by(cell, maintain_order=True).first()
    if firsts.height <= count:
        return firsts.to_dicts()
    places = [round(place * (firsts.height - 1) / max(1, count - 1)) for place in range(count)]
    return firsts[places].to_dicts()


def _sample(row: Mapping[str, Any]) -> list[Entry]:
    where = f"{row['task']}, level {row['level']}, {budget_name(row, None)}"
    loops = row["budget_loops"]
    return [
        Entry("right" if row["correct"] else "wrong", "" if row["correct"] else "strong"),
        Entry(where if loops in (None, 1) else f"{where}, {loops} loops"),
        *(Entry(_shown(row[name])) for name in ("question_text", "answer_text", "output_text")),
    ]


def _shown(text: str | None) -> str:
    """Make any text fit to be seen: control characters visible, and not endless."""
    if text is None:
        return "–"
    visible = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_LONGEST])
    return visible + (f" … ({len(text) - _LONGEST:,} more)" if len(text) > _LONGEST else "")
