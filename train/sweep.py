"""The runs of a sweep (`python -m train -m`) side by side instead of one by one."""

import signal
import sys

from data.make import make_corpus

from .conductor import Job, Sweep
from .config import RunConfig
from .folder import run_folder
from .interrupts import raise_interrupt


def planned_job(config: RunConfig, overrides: list[str]) -> Job:
    """Return a sweep's run that is to be trained beside others; `overrides` are what makes it."""
    return Job(_name(config), overrides, config, run_folder(config))


def _name(config: RunConfig) -> str:
    tasks = ", ".join(config.tasks_of_corpus())
    return f"{config.backbone.name}, {tasks}, seed {config.seed}, lr {config.optim.lr:g}"


def conduct(jobs: list[Job]) -> int:
    """Train the runs of a sweep, name their folders, and return the exit status.

    Raises:
        ValueError: a corpus can't be made.
    """
    unique = list({job.folder: job for job in jobs}.values())
    for job in unique:
        make_corpus(job.config.data)
    sweep = Sweep(unique, unique[0].config.parallel.runs)
    before = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        sweep.run()
    except KeyboardInterrupt as stop:
        print("train: stopped and saved; the same command goes on from there", file=sys.stderr)
        return 143 if stop.args == (signal.SIGTERM,) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    for failure in sweep.failed:
        print(f"train: {failure}", file=sys.stderr)
    for job in unique:
        if job.is_trained:
            print(f"run: {job.folder}")
    return 1 if sweep.failed else 0
