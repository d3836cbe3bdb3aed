"""The report's tables in the terminal."""

import sys

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from eval.table import Entry, Table

# Where the output is no terminal (a file, a pipe) there is no width to respect.
_PIPE_WIDTH = 160
_STYLES = {"strong": "bold", "faint": "dim", "": ""}


def console() -> Console:
    """Return a console for standard output: as wide as the terminal, or wide if there is none."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def print_table(content: Table, to: Console) -> None:
    """Print a table; the repeated name of a group is left out."""
    shown = RichTable(
        title=content.title, title_justify="left", title_style="bold", caption_justify="left"
    )
    for place, column in enumerate(content.columns):
        named = place < content.names
        shown.add_column(column, justify="left" if named else "right", overflow="fold")
    before = ""
    for row in content.rows:
        texts = [_text(entry) for entry in row]
        if content.grouped and row[0].text == before:
            texts[0] = Text("")
        before = row[0].text
        shown.add_row(*texts)
    to.print(shown)


def _text(entry: Entry) -> Text:
    # Text, not markup: a name with square brackets is a name.
    lines = Text(entry.text, style=_STYLES[entry.tone])
    for line in entry.detail:
        lines.append(f"\n{line}", style="not bold dim")
    return lines
