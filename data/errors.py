"""Errors for people: one line on standard error, and a status that is not zero."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@contextmanager
def one_line_errors(verb: str) -> Iterator[None]:
    """Turn what a user can mend into one line and exit status 2; let real faults show in full.

    A misspelt key, a wrong type (whatever the config library raises), an impossible value, a full
    disk: the line names the key or the file, and what is allowed.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let its exceptions reach this place
    try:
        yield
    except Exception as error:
        message = plain_message(error)
        if message is None:
            raise
        print(f"{verb}: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def plain_message(error: BaseException) -> str | None:
    """Return the line for an error that a user can mend, or None for a fault of the program."""
    if _library(error) in ("hydra", "omegaconf"):
        return _config_message(error)
    if isinstance(error, ValueError | ArithmeticError):
        return " ".join(str(error).split())
    if _library(error) == "wandb":
        return f"W&B: {' '.join(str(error).split())} Or choose logger.mode=offline"
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        place = f" at {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}: make room or choose another place, and run again"
    return None


def _config_message(error: BaseException) -> str:
    cause: Any = error
    while cause.__cause__ is not None and _library(cause.__cause__) in ("hydra", "omegaconf"):
        cause = cause.__cause__
    key, kind = getattr(cause, "full_key", None), getattr(cause, "object_type", None)
    text = " ".join(str(getattr(cause, "msg", None) or cause).split())
    for group in ("hydra/launcher", "hydra/sweeper"):
        if group in text and "Could not" in text:
            found = text.split(" Available options")[0]
            return f"{found}: install the extra `sweep` (pip install -e '.[sweep]')"
    for noise in (" full_key:", " Config search path:"):
        text = text.split(noise)[0]
    if key and is_dataclass(kind) and "not in" in text:
        allowed = ", ".join(field.name for field in fields(kind))
        return f"{key} is not a setting: choose one of {allowed}"
    if key and "is not in struct" in text:
        there = ", ".join(map(str, cause.parent_node)) or "nothing yet"
        parent, _, name = str(key).rpartition(".")
        return f"{key} is not there (there is {there}): add it with '+{parent}={{{name}: {{...}}}}'"
    return f"{key}: {text}" if key and key not in text else text


def _library(error: BaseException) -> str:
    return type(error).__module__.split(".")[0]
