"""The currencies in which an answer is paid, and how their amounts are written for people."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Currency:
    """One cost column of the ledger, as the report shows it.

    Attributes:
        column: the ledger's column; `total_steps` is the sum of visible tokens and latent steps.
        title: what it is called in headings and on axes.
        unit: the unit behind an amount ("2.5 M" + "FLOPs").
        binary: whether prefixes are powers of 1024 (bytes).
        scale: the amount in which eta is stated, so that its numbers are readable: quality per
            `scale` units.
        scale_name: `scale` in words.
        in_eta: whether eta is computed for it.
        measured: whether it is a measurement of this machine instead of a count.
    """

    column: str
    title: str
    unit: str
    scale: float
    scale_name: str
    binary: bool = False
    in_eta: bool = True
    measured: bool = False

    @property
    def counted(self) -> bool:
        """Whether the unit is a word for things that are counted, not a symbol."""
        return self.unit in ("tokens", "steps", "calls", "FLOPs")


CURRENCIES: tuple[Currency, ...] = (
    Currency("visible_tokens", "Visible tokens", "tokens", 1.0, "token"),
    Currency("total_steps", "Visible + latent steps", "steps", 1.0, "step", in_eta=False),
    Currency("serial_steps", "Serial steps", "steps", 1.0, "serial step"),
    Currency("model_flops", "Model FLOPs", "FLOPs", 1e6, "MFLOP"),
    Currency("state_bytes", "State bytes", "B", 1024.0, "KiB", binary=True),
    Currency("latency_b1_s", "Latency at batch 1", "s", 1.0, "second", measured=True),
    Currency("latent_steps", "Latent steps", "steps", 1.0, "latent step", in_eta=False),
    Currency("block_calls", "Block calls", "calls", 1.0, "block call", in_eta=False),
    Currency("joules", "Energy", "J", 1.0, "joule", in_eta=False, measured=True),
)
ETA_CURRENCIES: tuple[Currency, ...] = tuple(c for c in CURRENCIES if c.in_eta)

_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2.0**40, "Ti"), (2.0**30, "Gi"), (2.0**20, "Mi"), (2.0**10, "Ki"))
# Narrow and unbreakable, so that a number never parts from its unit.
_SPACE = "\u202f"
_SMALL = ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def amount(value: float | None, currency: Currency) -> str:
    """Write an amount with its unit: "2.5M FLOPs", "32 KiB", "12 tokens"; "–" for none."""
    if value is None or not math.isfinite(value):
        return "–"
    number, prefix = scaled(value, binary=currency.binary)
    if currency.counted:
        return f"{number}{prefix}{_SPACE}{currency.unit}"
    return f"{number}{_SPACE}{prefix}{currency.unit}"


def amount_bounds(low: float, high: float | None, value: float, currency: Currency) -> str:
    """Write an interval in the prefix that `amount` gives to `value`: "[15.1, 15.3]"."""
    step, _ = _scale(value, currency.binary)
    upper = "∞" if high is None else figures(high / step)
    return f"[{figures(low / step)}, {upper}]"


def scaled(value: float, binary: bool = False) -> tuple[str, str]:
    """Return a number of three figures and the SI or binary prefix that scales it back."""
    step, prefix = _scale(value, binary)
    return figures(value / step), prefix


def _scale(value: float, binary: bool) -> tuple[float, str]:
    """The unit of a prefix and its name. 999.6 k would read 1000 k: it takes the next prefix."""
    size = abs(value) / 0.9995
    large = _BINARY if binary else _DECIMAL
    small = () if binary or size >= 1 or size == 0 else _SMALL
    return next(((s, p) for s, p in (*large, *small) if size >= s), (1.0, ""))


def figures(value: float, digits: int = 3) -> str:
    """Write a number with `digits` significant figures, without an exponent or trailing zeros."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value: float | None) -> str:
    """Write a share as a percentage with one decimal; "–" for none."""
    return "–" if value is None else f"{100 * value:.1f}%"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Write a share with its interval, in percent: "97.2 [95.4, 98.3]"."""
    if value is None or low is None or high is None:
        return "–"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def share(value: float, low: float, high: float) -> str:
    """Write a share with its interval as in a sentence: "97.2% [95.4, 98.3]"."""
    return f"{100 * value:.1f}%\u00a0[{100 * low:.1f},\u00a0{100 * high:.1f}]"
