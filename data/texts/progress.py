"""A bar of the bytes read from a text's files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


class Reading:
    """How far the reading of several files is."""

    def __init__(self, files: list[Path], show: Callable[[int], None]) -> None:
        self._starts, total = {}, 0
        for path in files:
            self._starts[path] = total
            total += path.stat().st_size
        self._total, self._show = total, show

    def of(self, path: Path) -> Callable[[int], None]:
        """What hears of the bytes that were read of one file."""
        return lambda done: self._show(self._starts[path] + done)

    def finish(self) -> None:
        """All is read."""
        self._show(self._total)


@contextmanager
def reading_bar(files: list[Path], progress: bool) -> Iterator[Reading]:
    """Show a bar on standard error while the block runs, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("reading text"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not (progress and console.is_terminal))
    with bar:
        line = bar.add_task("", total=sum(path.stat().st_size for path in files))
        yield Reading(files, lambda done: bar.update(line, completed=done))
