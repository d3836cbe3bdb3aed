"""What a report writes beside its page where runs are taken together: PNGs and a Markdown file."""

from pathlib import Path

from data.atomic import write_atomically
from eval.findings import Findings
from eval.group_costs import cost_of_groups, draw_costs
from eval.loops_and_layers import gap_table
from eval.markdown import markdown_table
from eval.mechanism_figure import draw_mechanisms, draw_recall
from eval.mechanism_tables import mechanism_level_tables, mechanism_table, rate_table
from eval.mechanisms import Mechanisms
from eval.panels import png

MARKDOWN_FILE = "mechanisms.md"
_RECALL = "mqar"


def write_mechanisms(findings: Findings, folder: Path) -> list[Path]:
    """Write `mechanisms.png`, `costs.png`, `recall.png` where it was asked, and `mechanisms.md`.

    Returns:
        What was written; nothing where no runs are taken together.
    """
    found = findings.mechanisms
    if found is None:
        return []
    drawn = {"mechanisms.png": png(draw_mechanisms, found)}
    if _RECALL in found.tasks:
        drawn["recall.png"] = png(draw_recall, found, _RECALL)
    if findings.grouped is not None:
        drawn["costs.png"] = png(draw_costs, findings.grouped)
    for name, content in drawn.items():
        write_atomically(folder / name, content)
    text = _markdown(findings, found)
    write_atomically(folder / MARKDOWN_FILE, text.encode())
    return [folder / name for name in (*drawn, MARKDOWN_FILE)]


def _markdown(findings: Findings, found: Mechanisms) -> str:
    rates, gaps = rate_table(found), gap_table(found, findings.runs, findings.cells)
    costs = [] if findings.grouped is None else cost_of_groups(findings.grouped)
    tables = [mechanism_table(found), gaps, *costs, *mechanism_level_tables(found), rates]
    shown = [markdown_table(table) for table in tables if table is not None]
    return "\n".join([*shown, *findings.notes(), ""])
