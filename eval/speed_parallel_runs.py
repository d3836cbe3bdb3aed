"""Runs of `python -m train` for a measurement: started, watched to their end, and read.

A run says itself when each of its steps was done: `seconds` of metrics.csv, which is written once
the step's loss and gradient norm are read from the device, so on a GPU too all of the step is done.
What lies between two of them is all that a step costs a user: reading the batch, both passes, the
exchange with other processes, the optimiser, and the trainer around them.
"""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

LAST_LINES = 6
PATIENCE = 60.0
"""Seconds that a run has to end when it is asked to, before it is killed."""


class RunFailed(RuntimeError):
    """A run ended with an error; the message holds its own last lines."""


@dataclass(frozen=True)
class Steps:
    """The measured steps of one run.

    Attributes:
        seconds: of each step.
        tokens: of a step, on the mean, over all processes; padding is none.
        loss: of the last step.
    """

    seconds: list[float]
    tokens: float
    loss: float

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return median(self.seconds)


def train(overrides: Sequence[str], threads: int, warm_up: int) -> Steps:
    """Train a run to its end; return its steps after the first `warm_up` ones.

    Raises:
        RunFailed: it ended with an error.
    """
    said = run_to_end(["-m", "train", *overrides], threads)
    folder = said.splitlines()[-1].removeprefix("run: ")
    return read_steps(Path(folder) / "metrics.csv", warm_up)


def read_steps(path: Path, warm_up: int) -> Steps:
    """Read a run's metrics.csv; the first `warm_up` steps are left out, of which there is one."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert 1 <= warm_up < len(rows), "a step's time is counted from the step before it"
    done = [float(row["seconds"]) for row in rows[warm_up - 1 :]]
    tokens = [int(row["tokens"]) for row in rows[warm_up - 1 :]]
    seconds = [after - before for before, after in pairwise(done)]
    return Steps(seconds, (tokens[-1] - tokens[0]) / len(seconds), float(rows[-1]["loss"]))


def run_to_end(arguments: Sequence[str], threads: int) -> str:
    """Run Python with these arguments; return what it wrote to standard output.

    Whatever ends this program before it, an interrupt for one, ends the run too.

    Raises:
        RunFailed: it ended with an error.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate()
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        last = "\n".join(err.strip().splitlines()[-LAST_LINES:])
        raise RunFailed(last or f"ended with status {process.returncode}, without a word")
    return out


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, as a run does once it has saved; kill it where it takes too long."""
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextmanager
def termination_cleans_up() -> Iterator[None]:
    """Make SIGTERM an exception: what is under way is ended, and temporary folders removed."""

    def stop(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
