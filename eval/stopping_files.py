"""What a report writes beside its page where stopping rules were tried."""

import json
from collections.abc import Sequence
from pathlib import Path

from data.atomic import write_atomically
from eval.findings import Findings
from eval.markdown import markdown_table
from eval.panels import png
from eval.runs import Run
from eval.stopping import stopping_tables
from eval.stopping_figure import draw_stopping


def write_stopping(findings: Findings, folder: Path) -> list[Path]:
    """Write `stopping.png`, `stopping.md` and `stopping.json`; more pictures for more backbones.

    Returns:
        What was written; nothing where no rule was tried.
    """
    ways = findings.ways
    if not ways:
        return []
    made = []
    keys = list(dict.fromkeys((way.task, way.backbone) for way in ways))
    for number, (task, backbone) in enumerate(keys):
        own = [way for way in ways if (way.task, way.backbone) == (task, backbone)]
        mean = _trained_mean(findings.runs, backbone)
        name = "stopping.png" if number == 0 else f"stopping_{number + 1}.png"
        write_atomically(folder / name, png(draw_stopping, own, mean))
        made.append(folder / name)
    text = "\n".join(markdown_table(table) for table in stopping_tables(ways))
    write_atomically(folder / "stopping.md", text.encode())
    content = json.dumps([vars(way) for way in ways], indent=1)
    write_atomically(folder / "stopping.json", content.encode())
    return [*made, folder / "stopping.md", folder / "stopping.json"]


def _trained_mean(runs: Sequence[Run], backbone: str) -> float | None:
    """Mean loops of a training step, over the seeds of a backbone."""
    found = [run.cost.get("mean_train_loops") for run in runs if run.backbone == backbone]
    known = [float(loops) for loops in found if isinstance(loops, int | float)]
    return sum(known) / len(known) if known else None
