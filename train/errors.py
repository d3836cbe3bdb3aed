"""Errors for people: one line on standard error, and a status that is not zero."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(verb: str = "train") -> Iterator[None]:
    """Turn what a user can mend into one line and exit status 2; let real faults show in full."""
    try:
        yield
    except (ValueError, ArithmeticError) as error:
        _leave(verb, str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        _leave(verb, f"{error.strerror}{place}: make room or choose another place, and run again")


def _leave(verb: str, message: str) -> None:
    print(f"{verb}: {message}", file=sys.stderr)
    raise SystemExit(2) from None
