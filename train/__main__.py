"""`python -m train`: pretrain one backbone, or sweep over several with -m."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from data.errors import one_line_errors
from data.groups import describe_groups
from train.conductor import Job
from train.config import RunConfig
from train.interrupts import Interrupted
from train.lock import is_first_process
from train.pretrain import pretrain
from train.schema import check_command_line, register_schemas, to_config
from train.sweep import conduct, planned_job

HELP = """\
Pretrain one backbone on a reasoning corpus; the last line printed is `run: FOLDER`.

  python -m train experiment=smoke                    a whole run, in under a minute on a CPU
  python -m train backbone=gdn_hybrid data=s3_swaps trainer.max_steps=500 optim.lr=0.01
  python -m train experiment=smoke depth=looped backbone.layout="attn" seed=1
  python -m train -m experiment=smoke seed=0,1,2      sweep: a run for each value, one by one
  python -m train -m experiment=mechanisms            a sweep with runs side by side: a study
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
  parallel.runs=N               runs of a sweep (-m) that train side by side
  eval.after_training=true      write the run's ledger too, for python -m eval.report
  deterministic=true            deterministic kernels only

Groups are the files of configs/. A mixer goes where the layout names it, as in
mixer@backbone.mixers.attn=gdn; an experiment changes any of the others, and an arm what its
experiment compares.

"""


_planned: list[Job] = []


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Train one run and print `run: <folder>` last, or plan it, where runs train side by side."""
    with one_line_errors("train"):
        try:
            config, plain = to_config(composed)
            _refuse_sweep_over_processes(config)
            if _is_swept_side_by_side(config):
                _planned.append(planned_job(config, list(HydraConfig.get().overrides.task)))
                return
            folder = pretrain(config, plain)
        except Interrupted as stop:
            raise SystemExit(_stopped(str(stop), 128 + stop.signum)) from None
        except KeyboardInterrupt:
            raise SystemExit(_stopped("stopped before the first step", 130)) from None
    if is_first_process():
        print(f"run: {folder}", flush=True)


def _is_swept_side_by_side(config: RunConfig) -> bool:
    """All runs of such a sweep are composed, and so checked, before the first one trains."""
    return HydraConfig.get().mode is RunMode.MULTIRUN and config.parallel.runs > 1


def _refuse_sweep_over_processes(config: RunConfig) -> None:
    """Refuse what would start every job of a sweep again in the other processes of the first."""
    if config.parallel.processes > 1 and HydraConfig.get().mode is RunMode.MULTIRUN:
        raise ValueError(
            f"parallel.devices={config.parallel.devices} in a sweep (-m) is not possible: start "
            "the runs one by one, or set parallel.devices=1"
        )


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
    register_schemas()
    with one_line_errors("train"):
        check_command_line(sys.argv[1:])
        main()
        if _planned:
            sys.exit(conduct(_planned))
