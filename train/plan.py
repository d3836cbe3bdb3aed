"""`python -m train.plan`: memory, communication, time and money of a run, before paying for it."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from data.atomic import write_atomically
from data.errors import plain_message
from eval.terminal import console, print_table
from eval.verb import read_settings

from .config import RunConfig
from .folder import write_json
from .plan_check import check_plan
from .plan_scaling import scaling_table
from .plan_settings import PlanSettings, spread
from .plan_text import assumptions, headline, plan_tables, verdict
from .planning import Plan, make_plan, plain
from .schema import register_schemas, to_config

HELP = """\
Say what a run would hold, send, take and cost on GPUs that you don't have yet; nothing is trained,
no GPU is needed, and the last line printed is `plan: FILE`.

  python -m train.plan experiment=smoke
  python -m train.plan backbone=transformer size=7b data.context=4096 vocab=32768 world=512 \\
      gpu=h100 trainer.rows_per_step=1024 price=2.5 parallel=fsdp2
  python -m train.plan backbone=gdn_hybrid size=1b gpu=rtx4090 recompute=blocks rows=1
  python -m train.plan experiment=smoke check=true     train three steps on this GPU and compare

Every setting of `python -m train` goes, and is planned as the run would have it (parallel.devices,
nodes, strategy, replicas, offload, recompute, accumulate). Where parallel.strategy=auto leaves it
open and ddp doesn't fit, fsdp2 is planned. Beside them:

  gpu=NAME                  h100, h200, a100, b200, rtx4090, or cpu (this machine)
  world=N                   GPUs in all, in nodes of gpus_per_node=8 where N is a multiple of that:
                            short for parallel.devices=8 parallel.nodes=N/8
  strategy= replicas= recompute=
                            short for parallel.strategy= and so on
  rows=N                    rows of a GPU's micro-batch, instead of parallel.accumulate
  vocab=N                   rows of the embedding, where the corpus's tokenizer isn't made yet
  flash_attn=true           the flash-attn package is installed there
  price=X                   money for a GPU-hour
  output=FILE               JSON with every figure (default: runs/EXPERIMENT/plans/...)
  table=true                make the table of docs/scaling.md instead (output=FILE.md)

Peak rates, memory and links of the GPUs are their makers' figures (data sheets, see train/gpus.py);
only those of cpu are measured. No plan was held against a run on a GPU yet: check=true does that.
What is assumed, each to be set to what you measured:

  usable=0.92               share of a GPU's memory to fill
  peak_fraction=0.35        FLOP/s reached over the peak rate; check=true says yours. Llama 3 405B
                            reached 0.38 to 0.43 (bf16, H100; arXiv 2407.21783, table 4)
  link_fraction=0.7         bytes/s reached over the links' rate
  overlap=0.7               share of computing that communication hides behind
  hop_us=10                 microseconds that each doubling of a group adds to a collective
"""

SHORT = ("strategy", "replicas", "recompute")
"""Settings of a run that go by their last word."""

_OWN = [field.name for field in fields(PlanSettings)]
_FAULTS = (ValueError, HydraException, OmegaConfBaseException)


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    try:
        settings, overrides = read_plan_settings(arguments)
        if settings.table:
            return _write_table(settings, overrides, arguments)
        config = compose_run(overrides)
        plan = make_plan(config, settings)
        show(plan, console())
        for line in check_plan(plan) if settings.check else ():
            print(line)
        path = Path(settings.output) if settings.output else _path(config, plan)
        write_json(path, {"command": _command(arguments), **plain(plan)})
    except _FAULTS as error:
        message = plain_message(error) or " ".join(str(error).split())
        print(f"plan: {_with_own_settings(message)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plan: stopped", file=sys.stderr)
        return 130
    print(f"plan: {path}")
    if plan.fits is False:
        print(f"plan: {verdict(plan)}", file=sys.stderr)
        return 1
    return 0


def read_plan_settings(arguments: Sequence[str]) -> tuple[PlanSettings, list[str]]:
    """Part the plan's own settings from the run's overrides.

    Raises:
        ValueError: on a value of the wrong type, or one that can't be.
    """
    own = [argument for argument in arguments if argument.partition("=")[0] in _OWN]
    settings = read_settings(PlanSettings, own)
    settings.validate()
    rest = [argument for argument in arguments if argument not in own]
    overrides = [f"parallel.{a}" if a.partition("=")[0] in SHORT else a for a in rest]
    if settings.world:
        devices, nodes = spread(settings.world, settings.gpus_per_node)
        overrides += [f"parallel.devices={devices}", f"parallel.nodes={nodes}"]
    return settings, overrides


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """Compose and check a run as `python -m train` does."""
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        return to_config(compose("train", list(overrides)))[0]


def show(plan: Plan, to: Console) -> None:
    """Print a plan."""
    to.print(headline(plan), soft_wrap=True)
    to.print(verdict(plan), soft_wrap=True)
    for table in plan_tables(plan):
        print_table(table, to)
    for line in assumptions(plan):
        to.print(f"- {line}", soft_wrap=True)


def _path(config: RunConfig, plan: Plan) -> Path:
    name = f"{config.backbone.name}-{plan.layout.world}x{plan.gpu.name}-{plan.layout.strategy}"
    return Path(config.runs) / config.experiment_name / "plans" / f"{name}.json"


def _write_table(settings: PlanSettings, overrides: Sequence[str], arguments: Sequence[str]) -> int:
    """Write the table and its figures anew after each part: a large one takes long."""
    path = Path(settings.output or "runs/plans/scaling.md")
    lines, figures = [f"Made by `{_command(arguments)}`.", ""], []
    missing = [f"{family} {size}" for size in settings.sizes for family in settings.families]
    for more, found in scaling_table(settings, lambda own: compose_run([*own, *overrides])):
        lines, figures, missing = lines + more, figures + found, missing[1:]
        rest = [f"Not finished: {', '.join(missing)}.", ""] if missing else []
        write_atomically(path, "\n".join([*lines, *rest]).encode())
        text = json.dumps(figures, indent=1) + "\n"
        write_atomically(path.with_suffix(".json"), text.encode())
    print(f"plan: {path}")
    return 0


def _with_own_settings(message: str) -> str:
    """Name the plan's own settings beside the run's, where neither has what was given."""
    key, said, _ = message.partition(" is not a setting")
    if not said or "." in key:
        return message
    return f"{message}; or of the plan's own: {', '.join(_OWN)}"


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "train.plan", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
