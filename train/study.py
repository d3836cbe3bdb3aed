"""`python -m train.study`: several runs trained and evaluated side by side, drawn as one report."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
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

from data.errors import plain_message
from data.make import make_corpus
from eval.report import print_findings, write_report

from .checkpoints import is_finished
from .config import RunConfig
from .folder import run_folder
from .records import read_metrics
from .schema import register_schemas, to_config

HELP = """\
Train and evaluate the runs of a study side by side, then draw one report of all.

  python -m train.study experiment=quickstart
  python -m train.study experiment=quickstart seed=1 trainer.max_steps=200

The experiment lists the runs under `study.runs`, each as overrides; what stands on the command line
holds for all of them. A finished run is reused, an interrupted one goes on where it was.
  study.jobs=N   runs at a time (each on parallel.threads CPU threads)
"""
POLL_SECONDS = 0.5
LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """One run of a study.

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


class StudyFailed(RuntimeError):
    """A run of the study ended with an error; the message says which, and where its words are."""


def plan_jobs(overrides: Sequence[str]) -> tuple[RunConfig, list[Job]]:
    """Compose the study and each of its runs.

    Raises:
        ValueError: no runs are listed, or a run's settings can't be.
    """
    with initialize_config_module(config_module="configs", version_base="1.3"):
        root, _ = to_config(compose("train", list(overrides)))
        if not root.study.runs:
            raise ValueError(
                "study.runs is empty: choose an experiment that lists runs, as in "
                "experiment=quickstart"
            )
        jobs = []
        for name, own in root.study.runs.items():
            config, _ = to_config(compose("train", [*overrides, *own]))
            jobs.append(Job(name, [*overrides, *own], config, run_folder(config)))
    return root, jobs


class Conductor:
    """Runs the jobs of a study as processes, a few at a time, and shows how far they are.

    Args:
        jobs: what to run.
        at_a_time: how many side by side.
    """

    def __init__(self, jobs: list[Job], at_a_time: int) -> None:
        self.jobs, self.at_a_time = jobs, at_a_time
        self._steps = {job.name: 0 for job in jobs}
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
        total = sum(job.config.trainer.max_steps for job in self.jobs)
        with self._progress, ThreadPoolExecutor(self.at_a_time) as pool:
            self._all = self._progress.add_task("all runs", total=total, phase="training steps")
            futures = [pool.submit(self._run_job, job, self._bar(job)) for job in self.jobs]
            try:
                for future in as_completed(futures):  # a failure ends the study at once
                    future.result()
            except BaseException:
                self._stop()
                raise

    def _bar(self, job: Job) -> TaskID:
        total = job.config.trainer.max_steps
        return self._progress.add_task(job.name, total=total, start=False, phase="waiting")

    def _stop(self) -> None:
        self._stopping.set()
        for process in list(self._processes):
            process.send_signal(signal.SIGTERM)

    def _run_job(self, job: Job, bar: TaskID) -> None:
        self._progress.start_task(bar)
        if not is_finished(job.folder, job.config.trainer.max_steps):
            self._step(job, bar, "training", ["-m", "train", *job.overrides])
        threads = f"threads={job.config.parallel.threads}"
        self._step(
            job, bar, "evaluating", ["-m", "eval", f"run={job.folder}", "report=false", threads]
        )
        self._progress.update(bar, phase="done", completed=job.config.trainer.max_steps)

    def _step(self, job: Job, bar: TaskID, phase: str, arguments: list[str]) -> None:
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
        if process.returncode and not self._stopping.is_set():
            last = (log.read_text().strip().splitlines() or ["(no output)"])[-1]
            raise StudyFailed(f"{job.name}: {phase} failed: {last} (all of it: {log})")

    def _show(self, job: Job, bar: TaskID, phase: str) -> None:
        said = phase
        if phase == "training" and (rows := read_metrics(job.folder / "metrics.csv")):
            self._steps[job.name] = int(rows[-1]["step"])
            said = f"training, loss {float(rows[-1]['loss']):.3f}"
        self._progress.update(bar, completed=self._steps[job.name], phase=said)
        self._progress.update(self._all, completed=sum(self._steps.values()))
        if self._progress.disable:
            self._say_now_and_then()

    def _say_now_and_then(self) -> None:
        """Where there is no terminal, a line every half a minute."""
        seconds = time.monotonic() - self._began
        if seconds < self._line_at:
            return
        self._line_at = seconds + LINE_SECONDS
        total = sum(job.config.trainer.max_steps for job in self.jobs)
        done = sum(self._steps.values())
        print(f"{seconds:4.0f} s: {done} of {total} training steps", file=sys.stderr)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    register_schemas()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        root, jobs = plan_jobs(arguments)
        for job in jobs:
            make_corpus(job.config.data)
        Conductor(jobs, root.study.jobs).run()
        command = f"python -m train.study {' '.join(arguments)}"
        folders = [job.folder for job in jobs]
        output = Path(root.runs) / root.experiment_name / "report.html"
        print_findings(write_report(folders, output, command=command))
    except (ValueError, StudyFailed, HydraException, OmegaConfBaseException) as error:
        message = plain_message(error) or " ".join(str(error).split())
        print(f"study: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("study: stopped and saved; the same command goes on from there", file=sys.stderr)
        return 143 if stop.args == (signal.SIGTERM,) else 130
    print(f"report: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
