"""Work spread over processes that report how far they are, stop when told, and never outlive us."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_REPORT_EVERY = 64  # items between two looks at what is shared: locks are not free
_POLL_SECONDS = 0.1

Tick = Callable[[], None]


class WorkerLostError(ValueError):
    """A worker process was killed; the message is one line that says what to do."""


class _Stopped(Exception):
    """The parent asked this worker to stop."""


class _Reporter:
    """Counts items in shared memory; raises where the parent has asked to stop."""

    def __init__(self, done: Any, stop: Any):
        self._done, self._stop, self._pending = done, stop, 0

    def tick(self) -> None:
        self._pending += 1
        if self._pending == _REPORT_EVERY:
            self.flush()

    def flush(self) -> None:
        with self._done.get_lock():
            self._done.value += self._pending
        self._pending = 0
        if self._stop.is_set():
            raise _Stopped


_reporter: _Reporter | None = None


def run_in_processes(
    work: Callable[[Any, Tick], Any],
    jobs: list[Any],
    workers: int,
    show: Callable[[int], None],
) -> list[Any]:
    """Results of `work(job, tick)` for every job, in the order of the jobs.

    Args:
        work: a module-level function; it calls `tick()` after each item.
        jobs: picklable arguments.
        workers: processes.
        show: hears of the items that all processes have finished so far, several times a second.

    Raises:
        WorkerLostError: a process was killed from outside.
        Exception: whatever `work` raised first; the other jobs are then stopped.
    """
    # Spawned processes import afresh: they inherit neither locks nor threads, on any platform.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (done, stop)) as pool:
        futures = [pool.submit(_run, work, job) for job in jobs]
        try:
            _wait_for_all(futures, lambda: show(done.value))
        except BrokenProcessPool as error:
            raise WorkerLostError(
                "a worker process was killed (out of memory?); with fewer workers "
                "(data.workers=1) the finished shards are kept and the rest is made"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _wait_for_all(futures: list[Future], show: Callable[[], None]) -> None:
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        for future in finished:
            future.result()
        show()


def _start_worker(done: Any, stop: Any) -> None:
    global _reporter
    _reporter = _Reporter(done, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of Ctrl-C and stops us
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A parent that was killed outright cannot stop its workers, so they watch it."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _run(work: Callable[[Any, Tick], Any], job: Any) -> Any:
    assert _reporter is not None
    result = work(job, _reporter.tick)
    _reporter.flush()
    return result
