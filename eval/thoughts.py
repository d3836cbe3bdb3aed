"""`python -m eval.thoughts`: look into a run's thoughts and loops, read out as words."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from data.atomic import write_atomically
from data.split import evaluation_problems, splittable
from data.tasks.task import TRACES, Problem
from eval.__main__ import settings_of
from eval.budget import Budget
from eval.checkpoint import CheckpointError, Trained, load_trained
from eval.config import EvalConfig
from eval.readout import Look, can_be_looked_into, look
from eval.readout_page import render_looks
from eval.verb import read_settings, run_verb

PAGE_FILE = "thoughts.html"
HELP = """\
Look into a run: what its thoughts carry, and what each thought and loop would say.

  python -m eval.thoughts run=runs/smoke/transformer-s0-1a2b3c4d
  python -m eval.thoughts run=FOLDER level=8 questions=10 top=5
  python -m eval.thoughts run=FOLDER steps=2 out=two.html

A few held-out questions are answered, and every hidden state on the way is read out as words: one
HTML page that opens offline. Readouts are suggestive, not proof (see docs/thoughts.md). The tasks
are those of the run's own `eval` settings. It is for runs with thoughts (latent=feedback, soft,
pause, filler) or loops (depth=looped), or both.

  run=FOLDER             the folder that `python -m train` named (required)
  questions=4            questions of each task, spread over its levels
  task=NAME  level=N     this task, this level only
  top=3                  words to show of each state
  steps=N                thoughts before an answer; default: the backbone's own number
  loops=N                loops; default: the backbone's own number
  trace=none|short|full|verbose     trace mode; default: the first one asked in evaluations (after
                         which thoughts can stand)
  seed=N                 picks other questions; default: the evaluation's
  out=FILE.html          where to write; default: thoughts.html in the run's folder
  device=cpu|cuda
"""


@dataclass
class ThoughtsVerb:
    """The switches of the verb.

    Attributes:
        run: run folder.
        questions: questions of each task.
        task: the only task to ask; empty is all of the run's.
        level: the only level to ask; null spreads over the held-out ones.
        top: words to show of each state.
        steps: thoughts before an answer; null is the backbone's own number.
        loops: loop count; null is the backbone's own.
        trace: trace mode; null is the first one that is asked in evaluations.
        seed: picks the questions; null is the evaluation's.
        out: the HTML file; empty is in the run's folder.
        device: cpu or cuda.
    """

    run: str = ""
    questions: int = 4
    task: str = ""
    level: int | None = None
    top: int = 3
    steps: int | None = None
    loops: int | None = None
    trace: str | None = None
    seed: int | None = None
    out: str = ""
    device: str = "cpu"

    def validate(self) -> None:
        """Raise ValueError, in one line that names the key and what is allowed."""
        for name in ("questions", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.trace is not None and self.trace not in TRACES:
            raise ValueError(f"trace={self.trace} is not known: choose {', '.join(TRACES)}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device} is not known: choose cpu or cuda")
        if self.out and not self.out.endswith(".html"):
            raise ValueError(f"out={self.out}: must be the name of an .html file")


def parse(arguments: Sequence[str]) -> tuple[ThoughtsVerb, EvalConfig]:
    """Read `key=value` arguments, and the `eval` settings of the run that they name.

    Raises:
        ValueError: an unknown key, an impossible value, no run; one line.
    """
    verb = read_settings(ThoughtsVerb, arguments)
    config = read_settings(EvalConfig, [], settings_of(verb.run))
    verb.validate()
    config.validate()
    if verb.task and verb.task not in config.tasks:
        raise ValueError(f"task={verb.task}: this run is asked {', '.join(config.tasks)}")
    return verb, config


def looks(verb: ThoughtsVerb, config: EvalConfig) -> tuple[list[Look], Trained]:
    """Ask the questions and look into the answers.

    Raises:
        eval.checkpoint.CheckpointError: there is nothing to look into.
        ValueError: on switches that this run can't follow.
    """
    trained = load_trained(Path(verb.run))
    _check(trained, verb)
    backbone = trained.backbone.to(verb.device)
    seen = []
    for task in [verb.task] if verb.task else config.tasks:
        budget = _budget(trained, verb, config, task)
        for index, problem in _questions(verb, config, task):
            seen.append(look(backbone, problem, index, budget, trained.tokenizer, verb.top))
    return seen, trained


def _check(trained: Trained, verb: ThoughtsVerb) -> None:
    backbone = trained.backbone
    if trained.fills or not backbone.causal:
        raise CheckpointError(
            f"{verb.run}: it fills its answers in at once, so there are no steps to look into; "
            "give a run that writes word by word"
        )
    if not can_be_looked_into(backbone):
        raise CheckpointError(
            f"{verb.run}: it has neither thoughts nor loops to look into; give a run that was "
            "trained with latent=feedback, soft, pause or filler, or with depth=looped"
        )
    if verb.steps is not None and not backbone.config.latent.thinks:
        raise ValueError(f"steps={verb.steps}: this backbone has no thoughts; leave it out")
    backbone.depth.resolve_loops(verb.loops)


def _budget(trained: Trained, verb: ThoughtsVerb, config: EvalConfig, task: str) -> Budget:
    known = config.traces(task)
    if trained.backbone.config.latent.thinks:
        known = [trace for trace in known if trace != "none"] or ["full"]
    return Budget(verb.trace or known[0], None, verb.loops, verb.steps)


def _questions(verb: ThoughtsVerb, config: EvalConfig, task: str) -> list[tuple[int, Problem]]:
    """The first questions of each level, as an evaluation asks them; held-out ones if there are."""
    levels = config.levels(task)
    levels = [level for level in levels if splittable(task, level)] or levels
    levels = levels if verb.level is None else [verb.level]
    chosen = [levels[place * len(levels) // verb.questions] for place in range(verb.questions)]
    seed = config.seed if verb.seed is None else verb.seed
    return [
        numbered
        for level in dict.fromkeys(chosen)
        for numbered in enumerate(
            evaluation_problems(task, level, config.split, seed, chosen.count(level))
        )
    ]


def write_page(verb: ThoughtsVerb, config: EvalConfig, command: str) -> Path:
    """Look, and write the page; return where it is."""
    seen, trained = looks(verb, config)
    backbone, output = trained.backbone, Path(verb.out or Path(verb.run) / PAGE_FILE)
    loops = backbone.depth.resolve_loops(verb.loops)
    thoughts = backbone.config.latent.slots(verb.steps)
    lead = (
        f"{backbone.config.name} after {trained.step:,} steps: {thoughts} thoughts "
        f"({backbone.config.latent.kind}), {loops} loop{'s' if loops != 1 else ''}."
    )
    made = {
        "run": str(verb.run),
        "checkpoint": f"step {trained.step}, {trained.identity}",
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }
    write_atomically(output, render_looks(seen, lead, made).encode("utf-8"))
    return output


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status: 2 for a wrong setting, 1 if no page was made."""
    return run_verb(
        "eval.thoughts",
        HELP,
        arguments,
        parse,
        lambda asked, command: f"page: {write_page(*asked, command)}",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
