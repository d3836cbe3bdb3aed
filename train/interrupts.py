"""Stop a run politely: a signal ends it after the step, saved, in a folder that can be resumed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar


class Interrupted(Exception):
    """The run was asked to stop and has saved what it had; `signum` is the signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


_SIGNUMS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""The last one is what SLURM sends ahead of a job's end, to each of its processes."""


class StopRequest:
    """Remembers that a signal asked the run to stop; `signum` is None until then.

    Attributes:
        signum: the signal.
        of_process: the last one that any request of this process has met.
    """

    signum: int | None = None
    of_process: ClassVar[int | None] = None

    def listen(self) -> None:
        """Take the signals over, also from who took them after us.

        Lightning's own handler would end a run between the micro-batches of a step, unsaved, and
        between several processes it waits for what never comes.
        """
        for signum in _SIGNUMS:
            signal.signal(signum, self.receive)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal; a second SIGTERM or SIGINT acts at once."""
        self.signum = StopRequest.of_process = signum
        patient = signum == signal.SIGUSR2  # it may come from the scheduler and from our starter
        signal.signal(signum, signal.SIG_IGN if patient else signal.SIG_DFL)


@contextmanager
def watch_signals(at_once: bool = True) -> Iterator[StopRequest]:
    """Turn these signals into a `StopRequest` while inside; restore the handlers after.

    Args:
        at_once: begin now; else when `StopRequest.listen` is called. One of several processes
            waits for the others first, out of reach of Python's handlers: until then a signal has
            to end it, or it would outlive one that was refused.
    """
    request = StopRequest()
    before = {signum: signal.getsignal(signum) for signum in _SIGNUMS}
    if at_once:
        request.listen()
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def raise_interrupt(signum: int, frame: FrameType | None) -> None:
    """Turn a signal into KeyboardInterrupt, with its number: for who only waits for other runs."""
    raise KeyboardInterrupt(signum)
