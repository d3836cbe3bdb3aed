"""metrics.csv: one line a step, flushed as it is written, cut back to the checkpoint on resume."""

import csv
import io
from pathlib import Path
from typing import Any

from data.atomic import write_atomically

COLUMNS = (
    "step",
    "stage",
    "loss",
    "validation_loss",
    "learning_rate",
    "gradient_norm",
    "loops",
    "tokens",
    "seconds",
    # What of the loss comes from auxiliary losses, such as a teacher's labels; empty without any.
    "auxiliary_loss",
    # Of looped backbones alone, at validation: losses at half and twice the loops, and health.
    "validation_loss_fewer_loops",
    "validation_loss_more_loops",
    "state_norm",
    "loop_residual",
    "token_correlation",
    "spectral_bound",
    "mean_loops",
    # Of latent vectors alone: nats that a document's posterior is off the prior, on the mean.
    "posterior_kl",
    # Of trainer.spike alone: 1 where the step's update was left out, else 0.
    "skipped",
    # Every trainer.log_every steps: size of the update over size of the weights before it.
    "update_ratio_matrices",
    "update_ratio_rest",
    # At the same steps, of the time since the last of them, without validation and saving.
    "tokens_per_second",
    "forward_tokens_per_second_slowest_rank",
    "forward_tokens_per_second_fastest_rank",
    "mfu",
    "tokens_per_joule",
)
TIMED = ("seconds", *COLUMNS[COLUMNS.index("tokens_per_second") :])
"""Columns that are of this machine and this time: two runs of the same settings differ in them."""


class MetricsWriter:
    """Appends rows to metrics.csv.

    Args:
        path: the file.
        steps_done: steps that a checkpoint holds; later rows, of a run that went on without a
            checkpoint, are removed so that each step stands there once.
    """

    def __init__(self, path: Path, steps_done: int = 0) -> None:
        kept = [row for row in read_metrics(path) if int(row["step"]) <= steps_done]
        text = io.StringIO(newline="")
        header: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS)
        header.writeheader()
        header.writerows(kept)
        write_atomically(path, text.getvalue().encode())
        self._file = path.open("a", newline="")
        self._writer: csv.DictWriter[str] = csv.DictWriter(self._file, COLUMNS)
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        self.tokens = int(kept[-1]["tokens"]) if kept else 0

    def write(self, row: dict[str, Any]) -> None:
        """Write one step and flush it."""
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a metrics.csv (an empty list where there is none)."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # a kill may cut the last line
    rows = list(csv.DictReader(whole))
    return [row for row in rows if None not in row.values()]
