"""What `python -m train` says of runs that submitit takes over: which, where, and which failed."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LAUNCHER = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"


class _Told(logging.Handler):
    """Passes on what the launcher logs: the sweep's folder, then a line for each job."""

    folder: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Say it in our words."""
        head, _, rest = record.getMessage().strip().partition(" : ")
        if head.startswith("#"):
            print(f"train: job {head[1:]}: {rest}", file=sys.stderr)
        elif rest:
            self.folder = Path(rest)
            place = self.folder / ".submitit"
            print(f"train: what the jobs say stands in {place}", file=sys.stderr)


@contextmanager
def telling_of_jobs() -> Iterator[None]:
    """Say which jobs are handed over, and where their runs are; a job that failed ends in one line.

    Does nothing where this process trains the runs itself.
    """
    logger, told = logging.getLogger(_LAUNCHER), _Told(logging.INFO)
    logger.addHandler(told)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] != "submitit":
            raise
        print(f"train: {_failed(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        logger.removeHandler(told)
    if told.folder is not None:
        print(f"runs: {told.folder.parent}", flush=True)


def _failed(message: str) -> str:
    """Return submitit's account of a failed job as a line: which job, and its last words."""
    lines = [line.strip() for line in message.splitlines() if line.strip(" -")]
    which = lines[0].split(" with path")[0].replace("Job ", "job ", 1)
    last = lines[-1].removeprefix("train: ") if len(lines) > 1 else "it said nothing"
    return f"{which}: {last}; the others go on, and the same command takes up what failed"
