"""What a search over runs is told of one: how well it answers, and what that costs."""

import math
from collections.abc import Sequence
from pathlib import Path

from eval.currencies import CURRENCIES
from eval.ledger import LEDGER_FILE, read_ledger
from eval.metrics import cells

from .records import read_metrics

ACCURACY, VALIDATION_LOSS = "accuracy", "validation_loss"
COSTS = tuple(currency.column for currency in CURRENCIES)


def check_returns(names: Sequence[str], evaluated: bool) -> None:
    """Raise ValueError, naming the key, where a run won't know what a search asks."""
    allowed = (ACCURACY, VALIDATION_LOSS, *COSTS)
    for name in names:
        if name not in allowed:
            raise ValueError(f"returns={name} is not known: choose some of {', '.join(allowed)}")
        if name != VALIDATION_LOSS and not evaluated:
            raise ValueError(
                f"returns={name} comes from the run's ledger: set eval.after_training=true, or "
                f"choose {VALIDATION_LOSS}"
            )


def returned(run: Path, names: Sequence[str]) -> tuple[float, ...]:
    """Return these values of a finished run: means over all tasks, levels and budgets.

    Raises:
        ValueError: a value is missing, for instance a cost that wasn't measured.
    """
    values = tuple(_value(run, name) for name in names)
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{run}: returns={name} is missing there; choose what it has measured")
    return values


def _value(run: Path, name: str) -> float:
    if name == VALIDATION_LOSS:
        found = [row[name] for row in read_metrics(run / "metrics.csv") if row[name]]
        return float(found[-1]) if found else math.nan
    mean = cells(read_ledger(run / LEDGER_FILE))[name].mean()
    return mean if isinstance(mean, float) else math.nan
