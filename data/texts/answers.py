"""Whether an answer to a mathematical question is right: as a number, or as a formula.

Plain numbers are compared here; everything else by math-verify (from the `corpora` extra), which
parses LaTeX and compares with sympy, in a process of its own (`check_worker`).
"""

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

from .boxed import FieldError, boxed

# Commas stand between thousands: `1,2` is a list of two numbers, and no twelve.
_NUMBER = re.compile(r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?")
_LONGEST = 2_000  # a parser given a page of text takes minutes
SECONDS = 5.0


def accepts(gold: str, given: object) -> bool:
    """Whether an answer equals the stored one; never raises, whatever is given.

    Args:
        gold: the stored answer: a number, or LaTeX.
        given: what was answered; if it holds a `\\boxed{...}`, that is the answer.
    """
    if not isinstance(given, str) or not given.strip() or len(given) > _LONGEST:
        return False
    answer = _final(given)
    numbers = number_of(gold), number_of(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if " ".join(gold.split()) == " ".join(answer.split()):
        return True
    return _ask(gold, answer)


def _final(given: str) -> str:
    """The last boxed part of an answer, or all of it."""
    try:
        return boxed(given)
    except FieldError:
        return given.strip()


def number_of(text: str) -> Fraction | None:
    """A plain number's exact value: `1,000`, `-3.50`, `$12`, `3/4`; None for anything else."""
    plain = text.strip().strip("$").replace("\\$", "").replace("\\!", "").strip().rstrip(".")
    parts = [part.strip() for part in plain.split("/")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    try:
        values = [Fraction(part.replace(",", "").replace("$", "").rstrip("%")) for part in parts]
        return values[0] if len(values) == 1 else values[0] / values[1]
    except (ValueError, ZeroDivisionError):
        return None


def gradable(gold: str) -> bool:
    """Whether a stored answer is one that answers can be compared with: a number or a formula."""
    return number_of(gold) is not None or _ask(gold, None)


def _ask(gold: str, answer: str | None) -> bool:
    """Ask the process that compares formulas; a question that ends it, or takes long, is a no."""
    with _one_at_a_time:
        return _ask_alone(gold, answer)


def _ask_alone(gold: str, answer: str | None) -> bool:
    global _worker
    if _worker is None or _worker.poll() is not None:
        _worker = _started()
    assert _worker.stdin is not None and _worker.stdout is not None
    try:
        _worker.stdin.write(json.dumps([gold, answer]) + "\n")
        _worker.stdin.flush()
        if select.select([_worker.stdout], [], [], SECONDS)[0]:
            return _worker.stdout.readline().strip() == "true"
    except OSError:
        pass
    _end_worker()
    return False


_worker: subprocess.Popen[str] | None = None
_one_at_a_time = threading.Lock()  # two threads would read each other's verdicts


def _started() -> subprocess.Popen[str]:
    """Start the process.

    Raises:
        ValueError: math-verify isn't installed.
    """
    if find_spec("math_verify") is None:
        raise ValueError("checking formulas needs math-verify: pip install -e '.[corpora]'")
    root = str(Path(__file__).parents[2])
    worker = subprocess.Popen(
        [sys.executable, "-m", "data.texts.check_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
    )
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        worker.kill()
        raise ValueError("math-verify can't be started: pip install -e '.[corpora]' mends it")
    atexit.register(worker.kill)
    return worker


def _end_worker() -> None:
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.wait()
        _worker = None
