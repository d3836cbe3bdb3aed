"""Each process says where it is, and ends itself where it has not moved for too long.

    RUN/heartbeat/rank-N.json    the newest step and phase of a process, at most `BEAT_SECONDS` old
    RUN/stall/rank-N.txt         where every thread of it stood when it gave up

The training loop only sets attributes; a thread of its own writes and watches.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L

from data.atomic import TEMPORARY_SUFFIX

from .closing import Closing
from .logging import Alert

STALLED = 75
"""Exit status of a process that stood still: what may go well another time (EX_TEMPFAIL)."""

BEAT_SECONDS = 5.0
GRACE_SECONDS = 3.0
"""The first process speaks for all; the others wait so long before they speak themselves."""

ALERT_SECONDS = 10.0


@dataclass(frozen=True)
class Beat:
    """Where a process is.

    Attributes:
        rank: the process.
        step: steps that it has ended.
        phase: what it does since then.
        moved: when the phase began, seconds since 1970.
        time: when this was written; a process that is stopped or gone writes no more.
    """

    rank: int
    step: int
    phase: str
    moved: float
    time: float


def beat_file(run: Path, rank: int) -> Path:
    """Return where a process says where it is."""
    return run / "heartbeat" / f"rank-{rank}.json"


def stall_file(run: Path, rank: int) -> Path:
    """Return where a process that stood still leaves its threads."""
    return run / "stall" / f"rank-{rank}.txt"


def read_beats(run: Path, world: int) -> list[Beat]:
    """Return what the processes of a run said last; those that said nothing are left out."""
    found: list[Beat] = []
    for rank in range(world):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Beat(**json.loads(beat_file(run, rank).read_text())))
    return found


def describe_stall(beats: list[Beat], world: int, seconds: float, now: float) -> str:
    """Say in one line who is last, and where: the others most likely wait for it."""
    silent = sorted(set(range(world)) - {beat.rank for beat in beats})
    last = min(beats, key=lambda beat: (beat.step, beat.moved), default=None)
    where = "no process has said where it is"
    if last is not None:
        quiet = now - last.time
        where = f"rank {last.rank} of {world} is last, at step {last.step + 1} ({last.phase} for "
        where += f"{max(0.0, now - last.moved):.0f} s"
        where += f", silent for {quiet:.0f} s)" if quiet > 3 * BEAT_SECONDS else ")"
    if silent:
        where += f"; nothing was heard of rank {', '.join(map(str, silent))}"
    return f"no step has ended for trainer.stall_seconds={seconds:g}: {where}"


class Watchdog:
    """The thread that writes a process's heartbeat, and ends the process where it stands still.

    It watches from the end of the first step on: what comes before, compiling above all, may take
    any time, and connecting has time limits of its own. Where the whole process was suspended, the
    time away doesn't count.

    Args:
        run: the run's folder.
        rank: this process, of `world`.
        seconds: time without any progress after which it gives up; 0 is never.
        alert: told the line before the process ends; it may fail or hang.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        world: int,
        seconds: float,
        alert: Alert | None = None,
    ) -> None:
        self.run, self.rank, self.world = run, rank, world
        self.seconds, self.alert = seconds, alert
        self._state = (0, "starting", time.time())
        self._armed, self._moved = False, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self, step: int) -> None:
        """Begin to write and watch."""
        self.move(step, "first step")
        self._thread.start()

    def move(self, step: int, phase: str) -> None:
        """Note what the process does now; costs nothing."""
        self._state, self._moved = (step, phase, time.time()), time.monotonic()

    def arm(self) -> None:
        """Watch from now on: the first step has ended."""
        self._armed = True

    def stop(self) -> None:
        """End the thread; its last words are where the process ended."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        pause = min(BEAT_SECONDS, self.seconds / 4) if self.seconds else BEAT_SECONDS
        looked = time.monotonic()
        while True:
            self._beat()
            if self._ended.wait(pause):
                self._beat()
                return
            now = time.monotonic()
            if now - looked > pause + BEAT_SECONDS:  # suspended, or a machine that slept
                self._moved = now
            looked = now
            if self.seconds and self._armed and now - self._moved > self.seconds:
                self._give_up()

    def _beat(self) -> None:
        """Write where the process is; a full disk is not this thread's business."""
        path = beat_file(self.run, self.rank)
        beside = path.with_name(path.name + TEMPORARY_SUFFIX)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(asdict(Beat(self.rank, *self._state, time.time()))) + "\n")
            os.replace(beside, path)

    def _give_up(self) -> None:
        """Leave the threads, say who is last, and end the process: no exception would get out."""
        began = time.time()
        self._beat()
        with contextlib.suppress(OSError):
            path = stall_file(self.run, self.rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(GRACE_SECONDS if self.rank else GRACE_SECONDS / 3)  # for the others' last words
        if self.rank == 0 or not self._first_spoke(began):
            self._say()
        os._exit(STALLED)

    def _first_spoke(self, began: float) -> bool:
        with contextlib.suppress(OSError):
            return stall_file(self.run, 0).stat().st_mtime > began - self.seconds
        return False

    def _say(self) -> None:
        beats = read_beats(self.run, self.world)
        line = describe_stall(beats, self.world, self.seconds, time.time())
        line += f"; where each thread stands: {stall_file(self.run, self.rank).parent}"
        print(f"train: {line}", file=sys.stderr, flush=True)
        if self.alert is not None:
            words = ("stalled", line)
            told = threading.Thread(target=self.alert, args=words, daemon=True)
            told.start()
            told.join(ALERT_SECONDS)


class Heartbeat(Closing):
    """Tells the watchdog what the process does; stands first among the callbacks.

    Args:
        run: the run's folder.
        seconds: see `Watchdog`.
        alert: see `Watchdog`.
    """

    def __init__(self, run: Path, seconds: float, alert: Alert | None = None) -> None:
        self.run, self.seconds, self.alert = run, seconds, alert
        self.watchdog: Watchdog | None = None
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the thread."""
        rank, world = trainer.global_rank, trainer.world_size
        self.watchdog = Watchdog(self.run, rank, world, self.seconds, self.alert)
        self._first = trainer.global_step
        self.watchdog.start(self._first)

    def _move(self, trainer: L.Trainer, phase: str) -> None:
        if self.watchdog is not None:
            self.watchdog.move(trainer.global_step, phase)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there; a step that is over is over with its records and its checkpoint."""
        if self.watchdog is not None and trainer.global_step > self._first:
            self.watchdog.arm()
        self._move(trainer, "forward")

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any
    ) -> None:
        """The loss is there."""
        self._move(trainer, "backward")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """The gradients are there, and exchanged."""
        self._move(trainer, "update")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The update is done; what follows are records, validation, saving, and the next batch."""
        self._move(trainer, "record, validate, save, read")

    def close(self) -> None:
        """End the thread."""
        if self.watchdog is not None:
            self.watchdog.stop()
            self.watchdog = None
