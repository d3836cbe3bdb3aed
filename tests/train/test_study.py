"""A study of two runs, for real: one finished before, one stopped in the middle."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import TaskID

from eval.__main__ import main as evaluate
from eval.checkpoint import checkpoint_step, checkpoints
from eval.ledger import read_ledger
from tests.train.runs import SMALL, metrics, snapshot, start, train, wait_for_rows
from tests.train.test_launch import wait_until
from train.records import read_metrics
from train.schema import register_schemas
from train.study import Conductor, Job, StudyFailed, main, plan_jobs

STEPS = 400
STUDY = (
    *("experiment=smoke", *SMALL, f"trainer.max_steps={STEPS}", "trainer.validate_every=0"),
    *("parallel=cpu", "eval.items=3", "eval.latency_items=0", "eval.tasks.s3_swaps.levels=[4]"),
    """+study.runs={first: ["seed=0"], second: ["seed=1", "backbone.layout=attn"]}""",
)
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def verb() -> Iterator[None]:
    """What the verb sets up for its process, and what it leaves behind there."""
    register_schemas()
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def trained(folder: Path) -> int:
    return checkpoint_step(checkpoints(folder)[-1])


def test_a_study_from_its_middle_to_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run is done when it begins; the second is stopped halfway, and gone on with."""
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "runs" / "smoke"
    _, (first, second) = plan_jobs(STUDY)
    train(first.config)
    assert evaluate([f"run={first.folder}", "report=false", "device=cpu"]) == 0
    before = work_of(first.folder)
    assert len(before) >= 6

    process = start("train.study", *STUDY, cwd=tmp_path)
    try:
        wait_for_rows(experiment, 5, process, second.folder.name)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1] == "study: stopped and saved; the same command goes on from there"
    assert 5 <= trained(second.folder) == len(metrics(second.folder)) < STEPS
    assert not (second.folder / "ledger.parquet").exists()

    capsys.readouterr()
    assert main(STUDY) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[-1] == "report: runs/smoke/report.html"
    page = (experiment / "report.html").read_text()
    for folder in (first.folder, second.folder):
        assert trained(folder) == len(metrics(folder)) == STEPS
        assert read_ledger(folder / "ledger.parquet")["run"].unique().to_list() == [folder.name]
        assert folder.name in page
    assert work_of(first.folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"corpora", "runs"}


def work_of(run: Path) -> dict[str, tuple[int, int]]:
    """What costs time to make again; the ledger keeps its rows, but not its date."""
    files = snapshot(run).items()
    return {name: facts for name, facts in files if not name.endswith((".log", "ledger.parquet"))}


def test_a_run_that_fails_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, in its own words."""
    monkeypatch.chdir(tmp_path)
    _, (first, _) = plan_jobs(STUDY)
    wrong = Job("wrong", [*first.overrides, "seeed=1"], first.config, first.folder)
    with pytest.raises(StudyFailed, match=r"wrong: training failed: train: seeed is not a setting"):
        Conductor([wrong], at_a_time=2).run()


@pytest.mark.nightly
def test_the_others_save_when_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: the first would take an hour."""
    monkeypatch.chdir(tmp_path)
    _, (long, second) = plan_jobs([*STUDY, "trainer.max_steps=100000"])
    wrong = Job("wrong", [*second.overrides, "seeed=1"], second.config, second.folder)

    class OneAfterTheOther(Conductor):
        def run_job(self, job: Job, bar: TaskID) -> None:
            if job is wrong:
                wait_until(lambda: read_metrics(long.folder / "metrics.csv"))
            super().run_job(job, bar)

    with pytest.raises(StudyFailed, match="wrong: training failed"):
        OneAfterTheOther([long, wrong], at_a_time=2).run()
    assert 0 < trained(long.folder) == len(metrics(long.folder)) < 100_000


def test_a_study_plans_its_runs(tmp_path: Path) -> None:
    root, jobs = plan_jobs([*STUDY, f"runs={tmp_path}"])
    assert [job.name for job in jobs] == ["first", "second"]
    assert [job.config.seed for job in jobs] == [0, 1]
    assert len({job.folder for job in jobs}) == 2
    assert root.study.jobs == 2
    assert not list(tmp_path.iterdir())
    assert json.dumps(jobs[0].overrides)
