"""A table as data, shown alike in the page and in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        text: what it says.
        tone: "" as usual, "strong" for what stands out, "faint" for what does not count.
        detail: more lines, set smaller below it.
    """

    text: str
    tone: str = ""
    detail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table to show.

    Attributes:
        title: its heading.
        columns: the names of the columns; the first `names` of them name the rows.
        rows: the entries.
        note: a sentence below it.
        names: number of columns that hold names, set left; the others hold numbers.
        grouped: whether rows belong together that begin with the same name.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    note: str = ""
    names: int = 2
    grouped: bool = False
