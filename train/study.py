"""`python -m train.study`: several runs trained and evaluated side by side, drawn as one report."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from data.errors import plain_message
from data.make import make_corpus
from eval.report import print_findings, write_report

from .conductor import Conductor, Job, StudyFailed
from .config import RunConfig
from .folder import run_folder
from .interrupts import raise_interrupt
from .schema import register_schemas, to_config

HELP = """\
Train and evaluate the runs of a study side by side, then draw one report of all.

  python -m train.study experiment=quickstart
  python -m train.study experiment=quickstart seed=1 trainer.max_steps=200

The experiment lists the runs under `study.runs`, each as overrides; what stands on the command line
holds for all of them. A finished run is reused, an interrupted one goes on where it was.
  study.jobs=N          runs at a time (each on parallel.threads CPU threads)
  study.seeds=[0,1,2]   seeds that each run is trained with (default: seed alone)
"""


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
        for name, own in _runs(root):
            config, _ = to_config(compose("train", [*overrides, *own]))
            jobs.append(Job(name, [*overrides, *own], config, run_folder(config)))
    return root, jobs


def _runs(root: RunConfig) -> list[tuple[str, list[str]]]:
    """Each run's name and overrides, once for each seed."""
    listed, seeds = list(root.study.runs.items()), root.study.seeds
    if not seeds:
        return listed
    return [(f"{name} s{seed}", [*own, f"seed={seed}"]) for seed in seeds for name, own in listed]


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    register_schemas()
    signal.signal(signal.SIGTERM, raise_interrupt)
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
