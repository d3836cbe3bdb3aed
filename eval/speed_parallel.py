"""Speed of training with several processes, and what sharding costs where it saves nothing.

Each figure is of real runs (`python -m train`), as a user starts them: the same seed, corpus and
global batches in every way, so strong scaling; that the last losses agree is checked. Runs of all
ways take turns, so that a ratio compares runs of one moment.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from eval.speed_parallel_rows import (
    ParallelRow,
    Way,
    judge_parallel,
    parallel_table,
    wrong_losses,
)
from eval.speed_parallel_runs import RunFailed, Steps, termination_cleans_up, train
from eval.speed_show import show
from eval.speed_targets import target_lines
from eval.speed_timing import PRECISIONS, check_settings
from eval.speed_words import BYTES_A_WORD, write_words

LOOPS = 4
BACKBONES = {
    "transformer": (),
    "gdn_hybrid": (),
    "looped": (
        *("backbone.depth.count=fixed", f"backbone.depth.loops={LOOPS}"),
        *("backbone.depth.min_loops=1", "backbone.depth.max_loops=null"),
    ),
}
"""Configs of the trainer, and what is changed in them: a loop count that is drawn would make some
steps longer than others."""
WAYS = ("single", "threads", "fsdp2_alone", "ddp", "fsdp2")
OPTIMIZERS = ("adamw", "muon")
EXACT, ROUGH = 1e-5, 1e-2
"""How far last losses may be apart, relatively: by float32's rounding, and by that of bfloat16,
which autocast and Muon's iterations compute in."""


@dataclass
class ParallelSpeedConfig:
    """What `suite=parallel` measures; see the verb's help."""

    suite: str = "parallel"
    backbones: list[str] = field(default_factory=lambda: list(BACKBONES))
    ways: list[str] = field(default_factory=list)
    processes: int = 0
    dim: int = 256
    head_dim: int = 64
    layers: int = 4
    context: int = 512
    batch: int = 8
    optim: str = "adamw"
    steps: int = 6
    warm_up: int = 2
    rounds: int = 2
    precision: str = "32"
    threads: int = 1
    device: str = "cpu"
    output: str = "runs/speed/parallel.json"

    def validate(self) -> None:
        """Raise ValueError, naming the key and what is allowed."""
        check_settings(asdict(self) | {"clock": "wall"}, may_be_zero=("processes",))
        for key, known in (("backbones", BACKBONES), ("ways", WAYS)):
            chosen: list[str] = getattr(self, key)
            if set(chosen) - set(known) or len(set(chosen)) < len(chosen):
                raise ValueError(f"{key}={chosen} must name some of {', '.join(known)}, each once")
        if not self.backbones:
            raise ValueError(f"backbones=[] names none: choose of {', '.join(BACKBONES)}")
        if self.optim not in OPTIMIZERS:
            raise ValueError(f"optim={self.optim} is not known: choose {' or '.join(OPTIMIZERS)}")
        if self.threads < 1:
            raise ValueError("threads=0 leaves processes all cores each: say how many each has")
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up={self.warm_up} leaves none of steps={self.steps}")
        if "looped" in self.backbones and self.layers % LOOPS:
            raise ValueError(f"layers={self.layers}: looped needs a multiple of {LOOPS}")
        self._validate_processes()

    def _validate_processes(self) -> None:
        gpus = torch.cuda.device_count() if self.device == "cuda" else None
        if gpus == 0:
            raise ValueError("device=cuda, but torch sees no GPU: choose device=cpu")
        if gpus is not None and self.processes > gpus:
            raise ValueError(f"processes={self.processes} need a GPU each, and here are {gpus}")
        together = set(self.ways) & {"threads", "ddp", "fsdp2"}
        if together and self.num_processes == 1:
            raise ValueError(f"ways: {' and '.join(sorted(together))} need processes=2 or more")
        if "threads" in self.ways and gpus is not None:
            raise ValueError("ways: threads compares CPU threads: leave it out on device=cuda")
        if self.batch % self.num_processes:
            raise ValueError(
                f"batch={self.batch} can't be cut into {self.num_processes} equal parts, one for "
                f"each process: choose a multiple of {self.num_processes}"
            )

    @property
    def num_processes(self) -> int:
        """Processes that train together: as asked, else two, or one for each GPU."""
        default = torch.cuda.device_count() if self.device == "cuda" else 2
        return self.processes or default

    @property
    def loss_tolerance(self) -> float:
        """How far last losses may be apart, relatively."""
        return EXACT if (self.precision, self.optim) == ("32", "adamw") else ROUGH


def ways_of(config: ParallelSpeedConfig) -> list[Way]:
    """Return the ways to measure; the others are held against the first."""
    count, threads = config.num_processes, config.threads
    known = {
        "single": Way("single", 1, threads),
        "threads": Way("single", 1, count * threads),
        "fsdp2_alone": Way("fsdp2", 1, threads),
        "ddp": Way("ddp", count, threads),
        "fsdp2": Way("fsdp2", count, threads),
    }
    return [known[name] for name in config.ways or _usual_ways(config)]


def _usual_ways(config: ParallelSpeedConfig) -> list[str]:
    if config.num_processes == 1:
        return ["single", "fsdp2_alone"]
    beside = "fsdp2_alone" if config.device == "cuda" else "threads"
    return ["single", beside, "ddp", "fsdp2"]


def corpus_overrides(config: ParallelSpeedConfig, folder: Path) -> list[str]:
    """Write a text of as many rows as are trained on, and say how the trainer makes a corpus of it.

    Documents are four rows long: nearly no token is padding, and attention sees whole rows.
    """
    words, rows = folder / "words.txt", config.steps * config.batch
    documents = -(-rows // 4) + 1
    write_words(words, documents, 4 * config.context + BYTES_A_WORD)
    text = f'{{words: {{text: {{files: ["{words}"], document: line, deduplicate: false}}}}}}'
    return [
        *("data=s3_swaps", "~data.sources.direct", f"+data.sources={text}"),
        *("data.tokenizer.kind=bytes", "data.name=words", "data.workers=1"),
        f"data.root={folder / 'corpora'}",
        *(f"data.context={config.context}", f"data.num_documents={documents}"),
        *("data.num_validation_documents=0", "+eval.tasks={s3_swaps: {levels: [4]}}"),
    ]


def run_overrides(name: str, way: Way, config: ParallelSpeedConfig) -> list[str]:
    """Say what the trainer runs: no validation, one checkpoint, after the last measured step."""
    layers = config.layers // LOOPS if name == "looped" else config.layers
    return [
        *(f"backbone={name}", *BACKBONES[name], f"backbone.dim={config.dim}"),
        *(f"backbone.head_dim={config.head_dim}", f"backbone.num_layers={layers}"),
        *(f"optim={config.optim}", f"trainer.precision={config.precision}", "logger=none"),
        *(f"trainer.max_steps={config.steps}", f"trainer.checkpoint_every={config.steps}"),
        *(f"trainer.rows_per_step={config.batch}", "trainer.validate_every=0"),
        *(f"parallel.accelerator={config.device}", f"parallel.strategy={way.strategy}"),
        *(f"parallel.devices={way.processes}", f"parallel.threads={way.threads}"),
    ]


def measure_backbone(
    name: str, config: ParallelSpeedConfig, corpus: Sequence[str], folder: Path
) -> tuple[list[ParallelRow], list[str]]:
    """Train one backbone in every way, all in turn; return rows, and what failed.

    A way that fails is left out of later rounds; where the first one does, nothing can be compared.
    """
    ways, failures = ways_of(config), list[str]()
    found: dict[Way, list[Steps]] = {way: [] for way in ways}
    for turn in range(1, config.rounds + 1):
        for way in list(found):
            print(f"{name}: {way.name}, round {turn} of {config.rounds}", file=sys.stderr)
            overrides = [*corpus, *run_overrides(name, way, config)]
            try:
                with tempfile.TemporaryDirectory(dir=folder) as runs:
                    steps = train([*overrides, f"runs={runs}"], way.threads, config.warm_up)
                found[way].append(steps)
            except RunFailed as error:
                failures.append(f"{name}: {way.name}: {error}")
                print(f"failed: {failures[-1]}", file=sys.stderr)
                del found[way]
                if way == ways[0]:
                    return [], failures
    return _rows(name, found), failures


def _rows(name: str, found: Mapping[Way, list[Steps]]) -> list[ParallelRow]:
    first_way, first = next(iter(found.items()))
    return [ParallelRow(name, way, steps, first, first_way) for way, steps in found.items()]


def measure_parallel(config: ParallelSpeedConfig, machine: str, to: Console) -> dict[str, Any]:
    """Measure every backbone; print and write the table and the target; return all figures."""
    rows: list[ParallelRow] = []
    failures: list[str] = []
    with termination_cleans_up(), tempfile.TemporaryDirectory(prefix="pauca-speed-") as folder:
        corpus = corpus_overrides(config, Path(folder))
        for name in config.backbones:
            measured, failed = measure_backbone(name, config, corpus, Path(folder))
            rows, failures = [*rows, *measured], [*failures, *failed]
    wrong = wrong_losses(rows, config.loss_tolerance)
    verdicts = judge_parallel(rows, config.device)
    failures += wrong
    lines = [*target_lines(verdicts), *_crowded(config), *failures]
    if not failures:
        lines.append(f"all ways ended with the same loss, within {config.loss_tolerance:g}")
    title = f"a training step of {config.batch} x {config.context} tokens: seconds"
    show([parallel_table(rows, title, _note(config, machine))], lines, Path(config.output), to)
    return {"rows": [row.facts() for row in rows], "targets": verdicts, "failures": failures}


def _note(config: ParallelSpeedConfig, machine: str) -> str:
    shape = f"dim {config.dim}, {config.layers} layers"
    if "looped" in config.backbones:
        shape += f" (looped: {config.layers // LOOPS}, {LOOPS} times over)"
    measured = f"{config.rounds} x {config.steps - config.warm_up} steps"
    return (
        f"{machine}, {_cores()} cores; {shape}, {config.optim}, {PRECISIONS[config.precision]}; "
        f"{measured}, each time after {config.warm_up} to warm up. Seconds: the median over steps. "
        "Over the first: of medians within a round, and the median over rounds. Efficiency: "
        "speed-up over how many times as many threads or GPUs work. Apart: how far the last loss "
        "is from the first way's, relatively, at most over rounds."
    )


def _crowded(config: ParallelSpeedConfig) -> list[str]:
    """Say where threads share cores, so that speed-ups mean nothing."""
    cores, widest = _cores(), max(way.width for way in ways_of(config))
    if config.device == "cuda" or widest <= cores:
        return []
    return [f"{widest} threads share {cores} cores here: more processes can't be faster"]


def _cores() -> int:
    """Cores that this program may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
