"""What each of a run's processes says when the run ends with an error: what all know, one says.

A process that dies takes the others' connections with it, and their errors only say where each of
them waited just then. Why the run ended is for the first one to say, or for the job that watches.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from data.errors import plain_message

from .interrupts import StopRequest
from .launch import LOST_PEERS, TO_BE_MENDED, is_worker

GRACE_SECONDS = 5.0
"""Time in which the agent finds the process that died first, and ends the others itself."""

_GONE = ("closed by peer", "reset by peer", "Broken pipe", "ncclRemoteError")


def lost_peers(error: BaseException) -> bool:
    """Whether an error says no more than that another process has gone."""
    if isinstance(error, dist.DistNetworkError):
        return True
    from_exchange = isinstance(error, dist.DistBackendError) or "/gloo/transport/" in str(error)
    return from_exchange and any(words in str(error) for words in _GONE)


@contextmanager
def speaking_once() -> Iterator[None]:
    """Let one of a machine's processes say what a person can mend; who lost the others is brief.

    Faults of the program show in full, in each process that has one.
    """
    try:
        yield
    except Exception as error:
        if not is_worker():
            raise
        if lost_peers(error):
            raise SystemExit(_left_alone(error)) from None
        line = plain_message(error)
        if line is not None and not _is_first_to_say(line):
            raise SystemExit(TO_BE_MENDED) from None
        raise


def _left_alone(error: Exception) -> int:
    """Wait for the agent's SIGTERM; where none comes, the one that died is on another machine."""
    if StopRequest.of_process is not None:
        return LOST_PEERS
    time.sleep(GRACE_SECONDS)
    if _is_first_to_say("lost the others"):
        why = " ".join(str(error).split()).split(". ")[0]
        print(f"train: process {os.environ['RANK']} has lost the others: {why}", file=sys.stderr)
    return LOST_PEERS


def _is_first_to_say(line: str) -> bool:
    """Whether no other process of this machine has said it yet, since the processes began.

    torchrun's agent gives each process a folder for its errors, within one for all of them.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    said = hashlib.blake2b(line.encode(), digest_size=8).hexdigest()
    try:
        (Path(error_file).parents[1] / f"said-{said}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass  # twice is better than never
    return True
