"""`python -m train`: pretrain one backbone, or sweep over several with -m."""

import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from data.errors import one_line_errors
from data.groups import describe_groups
from data.make import make_corpus
from train.checkpoints import is_finished
from train.conductor import Job
from train.config import RunConfig
from train.folder import run_folder
from train.interrupts import Interrupted
from train.last_words import speaking_once
from train.launch import ProcessesFailed, die_with_parent, start_processes, starts_processes
from train.lock import is_first_process
from train.pretrain import pretrain
from train.returns import returned
from train.schema import check_command_line, register_schemas, to_config
from train.submitted import telling_of_jobs
from train.sweep import conduct, planned_job

HELP = """\
Pretrain one backbone on a reasoning corpus; the last line printed is `run: FOLDER`.

  python -m train experiment=smoke                    a whole run, in under a minute on a CPU
  python -m train backbone=gdn_hybrid data=s3_swaps trainer.max_steps=500 optim.lr=0.01
  python -m train experiment=smoke depth=looped backbone.layout="attn" seed=1
  python -m train -m experiment=smoke seed=0,1,2      sweep: a run for each value, one by one
  python -m train -m experiment=mechanisms            a sweep with runs side by side: a study
  python -m train launcher=slurm experiment=smoke seed=0,1,2     a SLURM job for each of them
  python -m train experiment=smoke --cfg job          print every setting, train nothing

The corpus is made if it isn't there yet. The same command again goes on where an interrupted run
was, and returns at once where the run is finished. `python -m eval run=FOLDER` comes next.

Any setting can be given as key=value. Those that are changed most:

  experiment_name=NAME          runs/NAME/ holds the run's folder
  seed=N                        initialisation, order of the batches, every draw
  trainer.max_steps=N           length of the run; trainer.rows_per_step=N rows a step
  optim.lr=X                    peak learning rate
  backbone.num_layers=N         also backbone.dim, backbone.layout="3*gdn attn",
                                backbone.target_parameters=N (the feed-forward width follows)
  data.num_documents=N          also data.context, data.sources.NAME.levels=[2,4,8]
  logger.mode=online            send to W&B; offline (the default) writes into the run's folder
  parallel.devices=N            processes, one device each; parallel.threads=N CPU threads each
  parallel=fsdp2                weights in shards (also ddp, hsdp); parallel.recompute=blocks
  parallel.restarts=N           times that a run goes on by itself after a process of it has died
  parallel.runs=N               runs of a sweep (-m) that train side by side
  eval.after_training=true      write the run's ledger too, for python -m eval.report
  deterministic=true            deterministic kernels only

Groups are the files of configs/. A mixer goes where the layout names it, as in
mixer@backbone.mixers.attn=gdn; an experiment changes any of the others, and an arm what its
experiment compares.

"""


_planned: list[Job] = []
"""Runs of a grid, which are trained when all of them are composed."""

_searched: list[bool] = []
"""Of each run of a search, whether it ended well."""


class RunFailed(RuntimeError):
    """A run of a search ended with an error; the search goes on without it."""


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(composed: DictConfig) -> tuple[float, ...] | float | None:
    """Train one run and print `run: <folder>` last, or plan it, where it is one of a sweep.

    Returns:
        What a search over runs asked for.
    """
    if not _is_searched():
        return _job(composed)
    _searched.append(False)
    try:
        values = _job(composed)
        _searched[-1] = True
        return values
    except SystemExit as stop:
        if stop.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        raise RunFailed(f"a run ended with status {stop.code}") from None


def _job(composed: DictConfig) -> tuple[float, ...] | float | None:
    with one_line_errors("train"):
        config, plain = to_config(composed)
        if _is_swept():
            _planned.append(planned_job(config, list(HydraConfig.get().overrides.task)))
            return None
        folder = _train(config, plain)
        if not is_first_process():
            return None
        if not starts_processes(config.parallel):
            print(f"run: {folder}", flush=True)
        values = returned(folder, config.returns)
    return values if len(values) > 1 else next(iter(values), None)


def _train(config: RunConfig, plain: dict[str, Any]) -> Path:
    folder = run_folder(config)
    try:
        if not starts_processes(config.parallel):
            with speaking_once():
                return pretrain(config, plain)
        if not is_finished(folder, config.trainer.max_steps):
            make_corpus(config.data)  # here, so that one process says how far it is, and what fails
        overrides = HydraConfig.get().overrides.task
        start_processes(config.parallel, [*overrides, "hydra.mode=RUN"])
        return folder
    except Interrupted as stop:
        raise SystemExit(_stopped(str(stop), 128 + stop.signum)) from None
    except ProcessesFailed as failure:
        raise SystemExit(_failed(failure)) from None
    except KeyboardInterrupt as stop:
        if isinstance(first := next(iter(stop.args), None), int):
            raise SystemExit(128 + first) from None  # the processes have said that they stopped
        raise SystemExit(_stopped("stopped before the first step", 130)) from None


def _is_swept() -> bool:
    """Whether this is one run of a grid: all are composed, and so checked, before one trains.

    Each is then trained in a process of its own. Where another launcher or sweeper is chosen, it is
    that one's to say where and when.
    """
    hydra_config = HydraConfig.get()
    return (
        hydra_config.mode is RunMode.MULTIRUN
        and hydra_config.launcher._target_.endswith(".BasicLauncher")
        and hydra_config.sweeper._target_.endswith(".BasicSweeper")
    )


def _is_searched() -> bool:
    """Whether a sweeper waits for this run's values."""
    hydra_config = HydraConfig.get()
    searched = not hydra_config.sweeper._target_.endswith(".BasicSweeper")
    return hydra_config.mode is RunMode.MULTIRUN and searched


def _failed(failure: ProcessesFailed) -> int:
    """Say how a process ended, where it could not say so itself."""
    if not failure.is_final:
        again = "the same command goes on from the newest checkpoint"
        print(f"train: {failure}; {again}", file=sys.stderr)
    return failure.status


def _nothing_found() -> int:
    print(f"train: all {len(_searched)} runs of the search failed: see above", file=sys.stderr)
    return 1


def _stopped(line: str, status: int) -> int:
    """Say why the run ended, once; the other processes of a run end quietly."""
    if not is_first_process():
        return 0
    print(f"train: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    if {"-h", "--help", "help"} & set(sys.argv[1:]):
        print(HELP + describe_groups())
        sys.exit()
    die_with_parent()
    register_schemas()
    with one_line_errors("train"):
        check_command_line(sys.argv[1:])
        try:
            with telling_of_jobs():
                main()
        except ValueError:  # a search of one value has no best run then
            if any(_searched) or not _searched:
                raise
        if _planned:
            sys.exit(conduct(_planned))
        if _searched and not any(_searched):
            sys.exit(_nothing_found())
