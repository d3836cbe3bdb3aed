"""A progress bar with the time left; silent where nobody looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.progress import TimeRemainingColumn as TimeLeftColumn


class Progress:
    """One line that says what is being done and for how long still."""

    def __init__(self, bar: Bar, total: float) -> None:
        """Add a line to `bar` for `total` units of work."""
        self._bar = bar
        self._line = bar.add_task("", total=total)

    def describe(self, what: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._line, description=what)

    def advance(self, amount: float) -> None:
        """Count work as done."""
        self._bar.advance(self._line, amount)


@contextmanager
def progress_bar(total: float, console: Console | None = None) -> Iterator[Progress]:
    """Show a bar on standard error while the block runs, if that is a terminal."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeftColumn(),
    )
    # The estimate looks back two minutes, since cells differ in speed.
    bar = Bar(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=120)
    with bar:
        yield Progress(bar, total)
