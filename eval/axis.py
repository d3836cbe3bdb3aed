"""A logarithmic cost axis whose ticks people can read, with a place for zero."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from eval.currencies import Currency, scaled

# From here on numbers are read in powers of ten, below in doublings.
_LARGE = 1e5


@dataclass(frozen=True)
class Axis:
    """A cost axis.

    Attributes:
        low, high: its ends, positive, in the currency's unit.
        ticks: where ticks stand, in the currency's unit.
        labels: what is written at them.
        zero: where free answers are drawn, left of everything (log of 0 has no place), or None.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    zero: float | None

    def place(self, cost: float) -> float:
        """Return where a cost is drawn: itself, or the zero's place."""
        return cost if cost > 0 or self.zero is None else self.zero

    def share(self, place: float) -> float:
        """Return how far along the axis a place lies, from 0 to 1."""
        return math.log(place / self.low) / math.log(self.high / self.low)


def cost_axis(costs: Iterable[float], currency: Currency, most_ticks: int = 6) -> Axis | None:
    """Lay out the axis for some costs; None where nobody spends anything, so there is no axis."""
    known = list(costs)
    positive = [cost for cost in known if cost > 0]
    if not positive:
        return None
    smallest, largest = min(positive), max(positive)
    pad = max(0.35, 0.07 * math.log2(largest / smallest))
    zero = smallest * 2 ** -max(1.5, 3 * pad) if min(known) == 0 else None
    low, high = (zero or smallest) * 2**-pad, largest * 2**pad
    ticks = _ticks(smallest * 2**-pad, high, currency, most_ticks)
    labels = [_label(tick, currency) for tick in ticks]
    if zero is not None:
        ticks, labels = [zero, *ticks], ["0", *labels]
    return Axis(low, high, tuple(ticks), tuple(labels), zero)


def _label(tick: float, currency: Currency) -> str:
    if currency.counted and tick < _LARGE:
        return f"{tick:,g}"
    number, prefix = scaled(tick, binary=currency.binary)
    return f"{number}{prefix}" if currency.counted else f"{number}\u202f{prefix}{currency.unit}"


def _ticks(low: float, high: float, currency: Currency, most: int) -> list[float]:
    """Choose the finest series of round numbers that leaves few enough ticks."""
    if currency.binary or (currency.counted and high < _LARGE):
        base, series = 2.0, ((1.0, 1.25, 1.5, 1.75), (1.0, 1.5), (1.0,))
    else:
        base, series = 10.0, ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,))
    candidates = [_series(low, high, base, steps) for steps in series]
    fitting = [ticks for ticks in candidates if len(ticks) <= most]
    if fitting:
        return fitting[0]
    coarsest = candidates[-1]
    return coarsest[:: math.ceil(len(coarsest) / most)]


def _series(low: float, high: float, base: float, steps: tuple[float, ...]) -> list[float]:
    first, last = (math.floor(math.log(end, base)) for end in (low, high))
    numbers = [step * base**power for power in range(first, last + 1) for step in steps]
    return [number for number in numbers if low <= number <= high]
