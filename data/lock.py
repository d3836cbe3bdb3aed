"""One process at a time makes what lies in a folder; the others wait and find it made."""

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

from .atomic import WriteError


@contextlib.contextmanager
def locked(folder: Path, progress: bool) -> Iterator[None]:
    """Hold the folder, which is made if it isn't there; with `progress`, say that one waits.

    Raises:
        WriteError: the folder can't be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115 (closed below, which also gives the lock back)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"waiting for another process that makes {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
