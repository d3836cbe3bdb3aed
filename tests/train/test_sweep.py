"""Runs of a sweep side by side, each evaluating itself; and the sweeps that configs/ offers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from eval.evaluate_run import is_evaluated
from eval.ledger import read_ledger
from tests.train.conftest import RunFactory
from tests.train.runs import SMALL, launch, snapshot, train
from train.conductor import Job, Sweep
from train.schema import register_schemas, to_config

EXPERIMENTS = ("mechanisms", "mechanisms_gpu", "mechanisms_full")
SWEEP = (
    *("-m", "experiment=smoke", *SMALL, "trainer.max_steps=6", "trainer.validate_every=6"),
    *("parallel=cpu", "parallel.runs=2", "eval.after_training=true", "eval.items=3"),
    *("eval.latency_items=0", "eval.tasks.s3_swaps.levels=[4,8]", "optim.lr=0.01,0.02"),
)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_two_commands_lead_to_a_table(tmp_path: Path) -> None:
    status, out, err = launch("train", *SWEEP, cwd=tmp_path)
    assert status == 0, err
    folders = [tmp_path / line.removeprefix("run: ") for line in out.splitlines()]
    assert len(folders) == 2
    for folder in folders:
        assert read_ledger(folder / "ledger.parquet")["level"].unique().sort().to_list() == [4, 8]
    assert "transformer, s3_swaps, seed 0, lr 0.02: training" in err

    before = [snapshot(folder) for folder in folders]
    again = launch("train", *SWEEP, cwd=tmp_path)
    assert again[:2] == (0, out)
    assert "training" not in again[2]
    assert [snapshot(folder) for folder in folders] == before

    status, out, err = launch("eval.report", "runs=runs/smoke", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "Which seeds solve what" in out
    assert (tmp_path / "runs" / "smoke" / "mechanisms.md").is_file()


def test_a_run_that_fails_does_not_end_a_sweep(
    run_at: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of a grid may diverge."""
    monkeypatch.chdir(tmp_path)
    wrong = Job("wrong", ["seeed=1"], run_at(), tmp_path / "wrong")
    sweep = Sweep([wrong], at_a_time=1)
    sweep.run()
    (said,) = sweep.failed
    assert said.startswith("wrong: training failed: train: seeed is not a setting")


def test_a_run_evaluates_itself_once(run_at: RunFactory) -> None:
    config = run_at()
    config.eval = replace(config.eval, after_training=True, items=2, latency_items=0)
    folder = train(config)
    assert is_evaluated(folder, config.eval)
    assert is_evaluated(folder, replace(config.eval, batch_size=3))
    assert not is_evaluated(folder, replace(config.eval, items=3))
    before = snapshot(folder)
    train(config)
    assert snapshot(folder) == before
    (folder / "evaluation.json").write_text("{")
    assert not is_evaluated(folder, config.eval)
    config.eval = replace(config.eval, items=3)
    train(config)
    assert is_evaluated(folder, config.eval)
    assert read_ledger(folder / "ledger.parquet").group_by("level").len()["len"].max() == 3


def choices(experiment: str) -> dict[str, list[str]]:
    """What the experiment's own sweep goes over."""
    with initialize_config_module(config_module="configs", version_base="1.3"):
        hydra = compose("train", [f"experiment={experiment}"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    params: dict[str, Any] = dict(OmegaConf.to_container(hydra.sweeper.params) or {})
    return {key: str(values).split(",") for key, values in params.items()}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_a_mechanism_study_composes(experiment: str) -> None:
    """One at a time beside the first of the others; the backbone bears its mixer's name."""
    register_schemas()
    swept = choices(experiment)
    first = {key: values[0] for key, values in swept.items()}
    for key, values in swept.items():
        for value in values:
            chosen = first | {key: value}
            overrides = [f"{key}={value}" for key, value in chosen.items()]
            with initialize_config_module(config_module="configs", version_base="1.3"):
                config, _ = to_config(compose("train", [f"experiment={experiment}", *overrides]))
            hybrid = "_hybrid" * (chosen.get("backbone") == "mixer_hybrid")
            mixer = chosen["mixer@backbone.mixers.mixer"]
            assert config.backbone.name == f"{mixer}{hybrid}"
            assert config.eval.after_training and config.parallel.runs > 1
            steps, every = config.trainer.max_steps, config.trainer.validate_every
            assert steps % every == 0, "the rate is chosen by the loss at the end"
