"""Several runs side by side, each in processes of its own, and how far they are."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eval.evaluate_run import is_evaluated

from .checkpoints import is_finished
from .config import RunConfig
from .records import read_metrics

POLL_SECONDS = 0.5
LINE_SECONDS = 30.0
ONE_BY_ONE = 12
"""Where there are more runs, only those that are at work have a line."""


@dataclass(frozen=True)
class Job:
    """One run of several.

    Attributes:
        name: for people.
        overrides: what makes the run, as the verbs take it.
        config: the composed settings.
        folder: where the run lives.
    """

    name: str
    overrides: list[str]
    config: RunConfig
    folder: Path

    @property
    def is_trained(self) -> bool:
        """Whether the last step's checkpoint is there."""
        return is_finished(self.folder, self.config.trainer.max_steps)

    @property
    def is_evaluated(self) -> bool:
        """Whether the ledger answers all that is asked."""
        return self.is_trained and is_evaluated(self.folder, self.config.eval)


class StudyFailed(RuntimeError):
    """A run ended with an error; the message says which, and where its words are."""


class Conductor:
    """Trains and evaluates jobs, a few at a time; a failure ends them all.

    Args:
        jobs: what to run.
        at_a_time: how many side by side.
    """

    def __init__(self, jobs: list[Job], at_a_time: int) -> None:
        self.jobs, self.at_a_time = jobs, at_a_time
        self._total = sum(job.config.trainer.max_steps for job in jobs)
        # What was there before is no progress of this time: it would spoil the time left.
        self._steps = {job.folder: job.config.trainer.max_steps * job.is_trained for job in jobs}
        self._began, self._line_at = time.monotonic(), 0.0
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[phase]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def run(self) -> None:
        """Train and evaluate every job.

        Raises:
            StudyFailed: a process ended with an error; the others are stopped politely first.
            KeyboardInterrupt: the study was asked to stop, and its runs have saved.
        """
        before = self._before = sum(self._steps.values())
        with self._progress, ThreadPoolExecutor(self.at_a_time) as pool:
            self._all = self._progress.add_task(
                f"all {len(self.jobs)} runs",
                total=self._total - before,
                phase="training steps",
            )
            futures = [pool.submit(self._run_and_hide, job, self._bar(job)) for job in self.jobs]
            try:
                for future in as_completed(futures):  # a failure ends the study at once
                    future.result()
            except BaseException:
                self._stop()
                raise

    def _bar(self, job: Job) -> TaskID:
        total, shown = job.config.trainer.max_steps, len(self.jobs) <= ONE_BY_ONE
        return self._progress.add_task(
            job.name, total=total, start=False, visible=shown, phase="waiting"
        )

    def _run_and_hide(self, job: Job, bar: TaskID) -> None:
        self._progress.start_task(bar)
        self._progress.update(bar, visible=True)
        self.run_job(job, bar)
        self._progress.update(
            bar,
            phase="done",
            completed=job.config.trainer.max_steps,
            visible=len(self.jobs) <= ONE_BY_ONE,
        )

    def _stop(self) -> None:
        self._stopping.set()
        for process in list(self._processes):
            process.send_signal(signal.SIGTERM)

    def run_job(self, job: Job, bar: TaskID) -> None:
        """Train the job in one process and evaluate it in another, each where it is missing."""
        if not job.is_trained:
            self.step(job, bar, "training", ["-m", "train", *job.overrides])
        threads = f"threads={job.config.parallel.threads}"
        if not job.is_evaluated:
            asked = ["-m", "eval", f"run={job.folder}", "report=false", threads]
            self.step(job, bar, "evaluating", asked)

    def step(self, job: Job, bar: TaskID, phase: str, arguments: list[str]) -> None:
        """Run a verb for a job to its end; its words go into the run's folder.

        Raises:
            StudyFailed: it ended with an error.
        """
        if self._stopping.is_set():
            return
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / f"{phase}.log"
        print(f"{job.name}: {phase}", file=sys.stderr) if self._progress.disable else None
        with log.open("w") as output:
            environment = os.environ | {"OMP_NUM_THREADS": str(job.config.parallel.threads or 1)}
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                text=True,
            )
            self._processes.add(process)
            if self._stopping.is_set():  # it began while the others were being stopped
                process.send_signal(signal.SIGTERM)
            while process.poll() is None:
                self._show(job, bar, phase)
                time.sleep(POLL_SECONDS)
            self._processes.discard(process)
        self._show(job, bar, phase)
        if process.returncode and not self._stopping.is_set():
            last = (log.read_text().strip().splitlines() or ["(no output)"])[-1]
            raise StudyFailed(f"{job.name}: {phase} failed: {last} (all of it: {log})")

    def _show(self, job: Job, bar: TaskID, phase: str) -> None:
        said = phase
        if phase == "training" and (rows := read_metrics(job.folder / "metrics.csv")):
            self._steps[job.folder] = int(rows[-1]["step"])
            said = f"training, loss {float(rows[-1]['loss']):.3f}"
        self._progress.update(bar, completed=self._steps[job.folder], phase=said)
        done = sum(self._steps.values()) - self._before
        self._progress.update(self._all, completed=done)
        if self._progress.disable:
            self._say_now_and_then(done)

    def _say_now_and_then(self, done: int) -> None:
        """Where there is no terminal, a line every half a minute."""
        seconds = time.monotonic() - self._began
        if seconds < self._line_at:
            return
        self._line_at = seconds + LINE_SECONDS
        left = self._total - self._before
        rest = f", about {seconds * (left - done) / done / 60:.0f} min left" if done else ""
        print(f"{seconds:4.0f} s: {done} of {left} training steps{rest}", file=sys.stderr)


class Sweep(Conductor):
    """The runs of a sweep: each is one process that trains and, where asked to, evaluates itself.

    Some rates of a grid may diverge: a run that fails is told at the end, and the others go on.
    """

    def __init__(self, jobs: list[Job], at_a_time: int) -> None:
        super().__init__(jobs, at_a_time)
        self.failed: list[str] = []

    def run_job(self, job: Job, bar: TaskID) -> None:
        """Run what `python -m train` would, where something of it is missing."""
        if job.is_evaluated if job.config.eval.after_training else job.is_trained:
            return
        try:
            self.step(job, bar, "training", ["-m", "train", *job.overrides, "hydra.mode=RUN"])
        except StudyFailed as failure:
            self.failed.append(str(failure))
