"""Small runs for the training tests: real ones, of a few steps, on one shared corpus."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.errors import one_line_errors
from data.source_config import SourceConfig
from models.config import BackboneConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.vector import VectorConfig
from models.mixers.attention import AttentionConfig
from train.config import ParallelConfig, RunConfig, TrainerConfig
from train.logging import LoggerConfig
from train.pretrain import pretrain
from train.records import TIMED

ROOT = Path(__file__).parents[2]
LOOPED = LoopedDepthConfig(loops=2, count="uniform", min_loops=1, max_loops=3)
GATED = LoopedDepthConfig(loops=3, halting="gate")
ROUTED = LoopedDepthConfig(loops=3, route="token")
VECTORS = VectorConfig(vectors=2, inner_steps=2)
# What the verb needs to train something as small as `small_run` does.
SMALL = (
    *("backbone.dim=16", "backbone.head_dim=8", "backbone.num_layers=1"),
    *("data.context=32", "data.num_documents=200", "data.num_validation_documents=40"),
    *("data.workers=1", "trainer.rows_per_step=4", "trainer.precision=32", "logger=none"),
)


class Killed(BaseException):
    """Stands for `kill -9` inside this process: nothing of ours catches it."""


def small_data(corpora: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "name": "small",
        "root": str(corpora),
        "context": 32,
        "num_documents": 200,
        "num_validation_documents": 40,
        "workers": 1,
        "sources": {
            "direct": SourceConfig("s3_swaps", "none", [2, 4, 8], dense=True),
            "written": SourceConfig("s3_swaps", "full", [2, 4]),
        },
    }
    return DataConfig(**{**settings, **changes})


def small_backbone(**changes: Any) -> BackboneConfig:
    settings: dict[str, Any] = {
        "name": "transformer",
        "dim": 16,
        "num_layers": 1,
        "head_dim": 8,
        "mixers": {"attn": AttentionConfig()},
    }
    return BackboneConfig(**{**settings, **changes})


def small_run(tmp: Path, corpora: Path, **changes: Any) -> RunConfig:
    """Return a run of twelve steps, saved and validated every four."""
    config = RunConfig(
        experiment_name="test",
        runs=str(tmp / "runs"),
        backbone=small_backbone(),
        data=small_data(corpora),
        trainer=TrainerConfig(
            max_steps=12,
            rows_per_step=4,
            precision="32",
            checkpoint_every=4,
            validate_every=4,
            validation_rows=10,
        ),
        parallel=ParallelConfig(accelerator="cpu"),
        logger=LoggerConfig(kind="none"),
    )
    return replace(config, **changes)


def with_trainer(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, trainer=replace(config.trainer, **changes))


def train(config: RunConfig) -> Path:
    """Check and train a run as the verb does, inside this process."""
    if not config.eval.tasks:
        config.eval.tasks = config.tasks_of_corpus()
    config.validate()
    return pretrain(config, asdict(config))


def metrics(run: Path) -> list[dict[str, str]]:
    """Return metrics.csv but for what its clock says."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key not in TIMED} for row in rows]


def losses(run: Path) -> list[float]:
    return [float(row["loss"]) for row in metrics(run)]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return when each file was written last, and its size."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    stats = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | changes


def start(verb: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a verb as a person does, in an own process."""
    return subprocess.Popen(
        [sys.executable, "-m", verb, *arguments],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(verb: str, *arguments: str, cwd: Path, **variables: str) -> tuple[int, str, str]:
    """Run a verb to its end; return its status and what it wrote to stdout and stderr."""
    process = start(verb, *arguments, cwd=cwd, **variables)
    try:
        out, err = process.communicate(timeout=250)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for_rows(runs: Path, rows: int, process: subprocess.Popen[str], name: str = "*") -> None:
    """Wait until the only run of that name under a folder has written that many steps."""
    while process.poll() is None:
        found = list(runs.glob(f"{name}/metrics.csv"))
        if found and found[0].read_text().count("\n") > rows:
            return
        time.sleep(0.002)
    raise AssertionError(f"ended before step {rows}: {process.communicate()}")


def refusal(capsys: pytest.CaptureFixture[str], verb: str, act: Callable[[], object]) -> str:
    """Return the one line, after the verb's name, with which something is refused."""
    with pytest.raises(SystemExit) as stop, one_line_errors(verb):
        act()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("training ")]
    assert line.startswith(f"{verb}: ")
    return line.removeprefix(f"{verb}: ")
