"""What a suite shows: its tables in the terminal and, beside the output, as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data.atomic import write_atomically
from eval.table import Entry, Table
from eval.terminal import print_table


def show(tables: Sequence[Table], lines: Sequence[str], output: Path, to: Console) -> None:
    """Print tables, their notes and closing lines; write the same as .md beside the output."""
    for table in tables:
        print_table(table, to)
        if table.note:
            to.print(table.note)
    for line in lines:
        to.print(line)
    write_atomically(output.with_suffix(".md"), markdown(tables, lines).encode())


def ratio_entries(ratio: float, rounds: Sequence[float], digits: int = 2) -> list[Entry]:
    """Lay a ratio of times out, and its range over rounds."""
    low, high = (f"x{end:.{digits}f}" for end in (min(rounds), max(rounds)))
    return [Entry(f"x{ratio:.{digits}f}", "strong"), Entry(f"{low} to {high}")]


def markdown(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """Write tables and closing lines as Markdown."""
    parts = [_markdown(table) for table in tables]
    return "\n".join([*parts, *(f"- {line}" for line in lines), ""])


def _markdown(table: Table) -> str:
    rule = ["---" if place < table.names else "---:" for place in range(len(table.columns))]
    rows = [list(table.columns), rule]
    for row in table.rows:
        texts = [entry.text.strip() for entry in row]
        rows.append([f"*{t}*" if t and e.tone else t for t, e in zip(texts, row, strict=True)])
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"**{table.title}**\n\n{body}\n" + (f"\n{table.note}\n" if table.note else "")
