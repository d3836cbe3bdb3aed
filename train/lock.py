"""One process a run folder: two that write the same checkpoints would corrupt them."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only


def is_first_process() -> bool:
    """Whether this process writes the run's folder; a run on several devices has others beside."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the folder's lock while inside; it vanishes with the process, however that ends.

    Raises:
        ValueError: where another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{run}: another process is training this run; wait for it, or stop it first"
            ) from None
        yield
