"""Real processes, real signals: `python -m train` stopped in every way, and started again."""

import random
import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from eval.checkpoint import checkpoint_step, checkpoints
from tests.train.runs import SMALL, launch, metrics, snapshot, start, wait_for_rows
from train.folder import run_folder
from train.pretrain import pretrain
from train.schema import register_schemas, to_config

STEPS = 240
COMMAND = ("experiment=smoke", *SMALL, f"trainer.max_steps={STEPS}", "trainer.validate_every=30")


def stop(
    cwd: Path, signum: signal.Signals, steps: int, checkpoint_every: int
) -> tuple[int, str, str]:
    """Start the run, send it a signal after some more steps, return what became of it."""
    runs = cwd / "runs" / "smoke"
    command = (*COMMAND, f"trainer.checkpoint_every={checkpoint_every}")
    process = start("train", *command, cwd=cwd)
    try:
        wait_for_rows(runs, steps, process)
        process.send_signal(signum)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert len(metrics(next(runs.iterdir()))) < STEPS, "it ended before it could be stopped"
    return process.returncode, out, err


def undisturbed(folder: Path, corpora: Path) -> Path:
    """Train the same run inside this process."""
    register_schemas()
    overrides = [*COMMAND, f"runs={folder}", f"data.root={corpora}"]
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config, plain = to_config(compose("train", overrides))
    return pretrain(config, plain)


@pytest.mark.nightly  # tests.drill has a short one
@pytest.mark.timeout(300)
def test_however_it_is_stopped_the_same_command_ends_the_same(tmp_path: Path) -> None:
    """Killed before its first checkpoint, killed after some, asked to stop; then to its end."""
    draw = random.Random()
    steps = [draw.randrange(1, 12), draw.randrange(20, 50), draw.randrange(80, 120)]
    print(f"steps {steps}")
    runs = tmp_path / "runs" / "smoke"

    status, out, _ = stop(tmp_path, signal.SIGKILL, steps[0], checkpoint_every=STEPS)
    (run,) = runs.iterdir()
    assert (status, out) == (-signal.SIGKILL, "")
    assert not checkpoints(run)

    status, out, _ = stop(tmp_path, signal.SIGKILL, steps[1], checkpoint_every=7)
    assert (status, out) == (-signal.SIGKILL, "")
    assert checkpoint_step(checkpoints(run)[-1]) % 7 == 0

    status, out, err = stop(tmp_path, signal.SIGTERM, steps[2], checkpoint_every=STEPS)
    assert (status, out) == (143, "")
    saved = checkpoint_step(checkpoints(run)[-1])
    assert saved == len(metrics(run)) >= steps[2]
    line = f"train: stopped at step {saved}, saved; the same command goes on from there"
    assert err.splitlines()[-1] == line

    status, out, err = launch("train", *COMMAND, cwd=tmp_path)
    assert status == 0, err
    assert out.splitlines()[-1] == f"run: {run.relative_to(tmp_path)}"
    assert metrics(run) == metrics(undisturbed(tmp_path / "whole", tmp_path / "corpora"))
    assert {path.name for path in tmp_path.iterdir()} == {"corpora", "runs", "whole"}

    before = snapshot(tmp_path)
    assert launch("train", *COMMAND, cwd=tmp_path) == (0, out, "")
    assert snapshot(tmp_path) == before


def test_the_folder_has_the_same_name_everywhere(tmp_path: Path) -> None:
    """Where the runs and the corpora lie is no part of a run's name."""
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        here, _ = to_config(compose("train", [*COMMAND]))
        there, _ = to_config(compose("train", [*COMMAND, f"runs={tmp_path}"]))
    assert run_folder(here).name == run_folder(there).name
