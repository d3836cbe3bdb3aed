"""A study of two runs, for real: stopped in the middle, gone on with, and asked for again."""

import json
import os
import signal
from pathlib import Path

import pytest

from eval.checkpoint import checkpoint_step, checkpoints
from eval.ledger import read_ledger
from tests.train.runs import SMALL, metrics, snapshot, start, wait_for_rows
from train.study import Conductor, Job, StudyFailed, main, plan_jobs

STEPS = 400
STUDY = (
    *("experiment=smoke", *SMALL, f"trainer.max_steps={STEPS}", "trainer.validate_every=0"),
    *("parallel=cpu", "eval.items=3", "eval.latency_items=0", "eval.tasks.s3_swaps.levels=[4]"),
    """+study.runs={first: ["seed=0"], second: ["seed=1", "backbone.layout=attn"]}""",
)
pytestmark = pytest.mark.timeout(300)


def trained(folder: Path) -> int:
    return checkpoint_step(checkpoints(folder)[-1])


def test_a_study_from_its_middle_to_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "runs" / "smoke"

    process = start("train.study", *STUDY, cwd=tmp_path)
    try:
        for seed in (0, 1):
            wait_for_rows(experiment, 5, process, f"transformer-s{seed}-*")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1] == "study: stopped and saved; the same command goes on from there"
    folders = sorted(experiment.glob("transformer-*"))
    assert len(folders) == 2
    for folder in folders:
        assert 5 <= trained(folder) == len(metrics(folder)) < STEPS
        assert not (folder / "ledger.parquet").exists()

    assert main(STUDY) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[-1] == "report: runs/smoke/report.html"
    for folder in folders:
        assert trained(folder) == len(metrics(folder)) == STEPS
        assert read_ledger(folder / "ledger.parquet")["run"].unique().to_list() == [folder.name]
    page = (experiment / "report.html").read_text()
    assert all(folder.name in page for folder in folders)

    before = {name: facts for name, facts in snapshot(experiment).items() if _is_work(name)}
    assert len(before) >= 2 * 6
    assert main(STUDY) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: runs/smoke/report.html"
    after = {name: facts for name, facts in snapshot(experiment).items() if _is_work(name)}
    assert after == before


def _is_work(name: str) -> bool:
    """What costs time to make again: not the report, the logs of evaluation, the ledger's file."""
    return "/" in name and not name.endswith((".png", "evaluating.log", "ledger.parquet"))


def failing_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """One run that fails at once, and one that would take minutes."""
    monkeypatch.chdir(tmp_path)
    _, (first, second) = plan_jobs([*STUDY, "trainer.max_steps=100000"])
    wrong = Job("wrong", [*first.overrides, "seeed=1"], first.config, first.folder)
    return [second, wrong]


def test_one_run_that_fails_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, by its name and words; the other one saves what it has and stops."""
    jobs = failing_jobs(tmp_path, monkeypatch)
    monkeypatch.setattr(os, "environ", os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    with pytest.raises(StudyFailed, match=r"wrong: training failed: train: seeed is not a setting"):
        Conductor(jobs, at_a_time=2).run()
    folder = jobs[0].folder
    if (folder / "metrics.csv").exists():
        assert trained(folder) == len(metrics(folder)) < 100_000


def test_a_study_plans_its_runs(tmp_path: Path) -> None:
    root, jobs = plan_jobs([*STUDY, f"runs={tmp_path}"])
    assert [job.name for job in jobs] == ["first", "second"]
    assert [job.config.seed for job in jobs] == [0, 1]
    assert len({job.folder for job in jobs}) == 2
    assert root.study.jobs == 2
    assert not list(tmp_path.iterdir())
    assert json.dumps(jobs[0].overrides)
