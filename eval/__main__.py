"""`python -m eval`: ask a trained backbone over its budgets, write the ledger, draw the report."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from eval.config import EvalConfig
from eval.evaluate_run import evaluate_run
from eval.report import REPORT_FILE, print_findings, write_report
from eval.verb import read_settings, run_verb

HELP = """\
Ask a trained backbone over its budgets, write its ledger, and draw its report.

  python -m eval run=runs/smoke/transformer-s0-1a2b3c4d
  python -m eval run=FOLDER eval.items=2000 eval.budgets.samples=[1,5]
  python -m eval run=FOLDER 'eval.tasks.s3_swaps.levels=[8,16,24]' force=true

What the run's own config says under `eval` holds, unless it is overridden here:

  run=FOLDER             the folder that `python -m train` named (required)
  eval.tasks.NAME.levels=[...]      levels to ask; a new NAME adds a task
  eval.items=N           questions for each task, level and budget
  eval.budgets.traces=[none,full]   trace modes; also forced_ends, loops, samples (lists; their
                         product is run) and temperature
  eval.batch_size=N  eval.latency_items=N  eval.seed=N  eval.split=test|validation
  eval.faithfulness=true            of a backbone with thoughts: also ask with its thoughts
                         swapped between questions, zeroed, and cut short
  force=true             ask again what the ledger already answers
  report=false           write the ledger only
  device=auto|cpu|cuda   threads=N (0: torch's choice)

Cells that the ledger answers for the same checkpoint are kept; an interrupted evaluation goes on.
"""


@dataclass
class EvalVerb:
    """The switches of the verb.

    Attributes:
        run: run folder.
        eval: what is asked.
        force: ask again what the ledger already answers.
        report: draw the report too.
        device: auto, cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """

    run: str = ""
    eval: EvalConfig = field(default_factory=EvalConfig)
    force: bool = False
    report: bool = True
    device: str = "auto"
    threads: int = 0


def parse(arguments: Sequence[str]) -> EvalVerb:
    """Lay the arguments over the run's own `eval` settings.

    Raises:
        ValueError: an unknown key, an impossible value, no run; one line.
    """
    own = settings_of(read_settings(EvalVerb, arguments).run)
    verb = read_settings(EvalVerb, arguments, {"eval": own})
    if verb.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={verb.device} is not known: choose auto, cpu or cuda")
    verb.eval.validate()
    return verb


def settings_of(run: str) -> Any:
    """Return what a run's own config says under `eval`; ValueError where there is no such run."""
    if not run:
        raise ValueError("run is not set: give a run folder, as in run=runs/smoke/NAME")
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"run={run} is no run folder (it has no config.yaml): give the folder that the last "
            "line of python -m train named, or train it first"
        )
    return OmegaConf.select(OmegaConf.load(path), "eval") or {}


def run_evaluation(verb: EvalVerb) -> Path:
    """Evaluate a run and write its ledger after each cell; return the ledger's path."""
    if verb.threads:
        torch.set_num_threads(verb.threads)
    return evaluate_run(Path(verb.run), verb.eval, verb.device, verb.force)


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status: 2 for a wrong setting, 1 where it could not be done."""
    return run_verb("eval", HELP, arguments, parse, _evaluate)


def _evaluate(verb: EvalVerb, command: str) -> str:
    try:
        ledger = run_evaluation(verb)
    except KeyboardInterrupt:
        line = "stopped; the same command goes on after the last finished cell"
        raise KeyboardInterrupt(line) from None
    if not verb.report:
        return f"ledger: {ledger}"
    report = Path(verb.run) / REPORT_FILE
    print_findings(write_report([Path(verb.run)], report, command=command))
    return f"report: {report}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
