"""The report's tables as Markdown, for a README or a results page."""

import re
from collections.abc import Sequence

from eval.table import Entry, Table


def markdown_table(content: Table) -> str:
    """Write a table with its heading and its note; details follow on lines of their own."""
    rows = [_row(content.columns), _row([":--"] * content.names + ["--:"] * _numbers(content))]
    rows += [_row([_entry(entry) for entry in row]) for row in content.rows]
    note = f"\n{content.note}\n" if content.note else ""
    return f"## {content.title}\n\n" + "\n".join(rows) + f"\n{note}"


def _numbers(content: Table) -> int:
    return len(content.columns) - content.names


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _entry(entry: Entry) -> str:
    text = _escaped(entry.text)
    shown = f"**{text}**" if entry.tone == "strong" else text
    return "<br>".join([shown, *map(_escaped, entry.detail)])


def _escaped(text: str) -> str:
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", text)
