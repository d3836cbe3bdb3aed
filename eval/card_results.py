"""What a model card says about a run's answers: tables with intervals, and the frontier."""

from dataclasses import dataclass
from pathlib import Path

from eval.currencies import ETA_CURRENCIES
from eval.figures import draw_frontiers, headline_currencies
from eval.findings import gather
from eval.ledger import LEDGER_FILE, read_ledger
from eval.markdown import markdown_table
from eval.metrics import spent_currencies
from eval.panels import png
from eval.tables import level_tables, point_tables

_THRESHOLD = 0.9


@dataclass(frozen=True)
class CardResults:
    """The results of one run.

    Attributes:
        markdown: tables and what must be known to read them.
        frontier: a picture of accuracy against cost; empty where there is none to draw.
    """

    markdown: str
    frontier: bytes = b""


def card_results(run: Path, checkpoint: str) -> CardResults | None:
    """Read a run's ledger; None where no answer of these weights is in it.

    Args:
        run: the run's folder.
        checkpoint: the identity of its weights.

    Raises:
        eval.runs.RunError: the run's facts are missing or damaged.
        eval.ledger.LedgerError: the ledger can't be trusted.
    """
    path = run / LEDGER_FILE
    if not path.is_file():
        return None
    ledger = read_ledger(path)
    known = set(ledger["checkpoint"].unique()) if "checkpoint" in ledger.columns else set()
    if known != {checkpoint}:
        return None
    findings = gather([run], _THRESHOLD)
    spent = [c for c in ETA_CURRENCIES if c in spent_currencies(findings.points)]
    tables = [*point_tables(findings, spent), *level_tables(findings)]
    notes = [f"- {note}" for note in findings.notes()]
    text = "\n".join([*map(markdown_table, tables), *notes])
    headline = headline_currencies(findings.points)
    if not headline:
        return CardResults(text)
    shown = (findings.points, headline, findings.styles, findings.sizes())
    return CardResults(text, png(draw_frontiers, *shown))
