"""Stop a run politely: SIGTERM and SIGINT finish the step, save, and leave a resumable folder."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and has saved what it had; `signum` is the signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Remembers that a signal asked the run to stop; `signum` is None until then."""

    signum: int | None = None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal; a second one of the same kind acts at once."""
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)


@contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a `StopRequest` while inside; restore the handlers after."""
    request = StopRequest()
    signums = (signal.SIGTERM, signal.SIGINT)
    before = {signum: signal.signal(signum, request.receive) for signum in signums}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
