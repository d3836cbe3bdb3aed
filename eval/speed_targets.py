"""What `suite=mixers` should reach, judged by what was measured in the same run."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.speed_rows import Row, Rows

LENGTH = 2048
"""Tokens at which ours and transformers' are compared."""
FASTER = {"gdn": 1.5, "kda": 5.0, "mamba2": 3.0}
"""How many times faster than its peer, forward + backward."""
SMALLER = {"kda": 0.5, "mamba2": 0.5}
"""Peak memory over its peer's, at most."""
FLAT = 1.15
"""Time for a token at the longest length over that at `LENGTH`, at most, where cost is linear."""
OVERHEAD = 1.05
"""Our dispatch over the kernel called directly, at most."""


def judge(
    rows: Rows, linear: set[str], kernels: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return each target with its figure (None where it was not measured) and whether it is met.

    Args:
        rows: what was measured.
        linear: mixers whose cost of a token does not grow with its context.
        kernels: what `compare_kernels` found; empty without a GPU.
    """
    verdicts = []
    for mixer, least in FASTER.items():
        ratio = _ratio(_training(rows, mixer, "peer"), _training(rows, mixer, "ours"), "median")
        what = f"{mixer}: times faster than transformers at {LENGTH}, forward + backward"
        verdicts.append(verdict(what, ratio, least, at_least=True))
    for mixer, most in SMALLER.items():
        ratio = _ratio(_training(rows, mixer, "ours"), _training(rows, mixer, "peer"), "peak_bytes")
        what = f"{mixer}: peak memory over transformers' at {LENGTH}, forward + backward"
        verdicts.append(verdict(what, ratio, most, at_least=False))
    for mixer in (name for name, who, _ in rows.lines() if who == "ours" and name in linear):
        verdicts.append(_flatness(rows, mixer))
    for name, found in kernels.items():
        what = f"{name}: our dispatch over the kernel called directly"
        verdicts.append(verdict(what, found["ratio"], OVERHEAD, at_least=False))
    return verdicts


def _training(rows: Rows, mixer: str, who: str, length: int = LENGTH) -> Row | None:
    return rows.get(mixer, who, "training", length)


def _ratio(over: Row | None, under: Row | None, figure: str) -> float | None:
    above = None if over is None else getattr(over, figure)
    below = None if under is None else getattr(under, figure)
    return above / below if above and below else None


def _flatness(rows: Rows, mixer: str) -> dict[str, Any]:
    longest = rows.lengths[-1]
    long = _training(rows, mixer, "ours", longest) if longest > LENGTH else None
    ratio = _ratio(long, _training(rows, mixer, "ours"), "microseconds")
    far = str(longest) if longest > LENGTH else "a longer length"
    what = f"{mixer}: time for a token at {far} over that at {LENGTH}, forward + backward"
    return verdict(what, ratio, FLAT, at_least=False)


def verdict(what: str, figure: float | None, bound: float, at_least: bool) -> dict[str, Any]:
    """Judge one figure by its bound."""
    reached = None
    if figure is not None:
        reached = figure >= bound if at_least else figure <= bound
    return {
        "what": what,
        "figure": figure,
        "bound": bound,
        "direction": "at least" if at_least else "at most",
        "reached": reached,
    }


def target_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say each target in a line: reached, missed or not measured."""
    words = {True: "reached", False: "MISSED", None: "not measured"}
    return [
        f"{words[v['reached']]}: {v['what']}: "
        + ("" if v["figure"] is None else f"{_said(v['figure'])}, ")
        + f"target {v['direction']} {v['bound']:g}"
        for v in verdicts
    ]


def _said(figure: float) -> str:
    return f"{figure}" if isinstance(figure, int) else f"{figure:.2f}"
