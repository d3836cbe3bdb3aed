"""Who starts the processes of a run: the job itself, a sweep, torchrun, SLURM, a search."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.runs import SMALL, launch, metrics, snapshot, start, wait_for_rows
from train.launch import starts_processes
from train.parallel_config import ParallelConfig
from train.returns import check_returns, returned
from train.sbatch import script
from train.schema import register_schemas
from train.submitted import _failed

QUICK = ("experiment=smoke", *SMALL, "parallel=cpu", "trainer.validate_every=0")
TWO = (*QUICK, "parallel.devices=2")


def wait_until(true: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a job has started."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_a_sweep_of_four_runs_of_two_processes_leaves_four_folders(tmp_path: Path) -> None:
    """The launcher of Lightning would have made a second sweep of it in rank 1."""
    sweep = ("-m", *TWO, "trainer.max_steps=3", "parallel.runs=2", "seed=0,1,2,3")
    status, out, err = launch("train", *sweep, cwd=tmp_path)
    assert status == 0, err
    folders = [line.removeprefix("run: ") for line in out.splitlines()]
    there = [path for path in (tmp_path / "runs" / "smoke").iterdir() if path.name[0] != "."]
    assert sorted(tmp_path / folder for folder in folders) == sorted(there)
    assert len(there) == 4
    assert all(len(metrics(folder)) == 3 for folder in there)

    before = [snapshot(folder) for folder in there]
    shutil.rmtree(there[0] / "checkpoints" / "step-0000003")  # broken: to be taken up again
    (there[0] / "metrics.csv").unlink()
    status, out, err = launch("train", *sweep, cwd=tmp_path)
    assert status == 0, err
    assert len(metrics(there[0])) == 3
    assert [snapshot(folder) for folder in there[1:]] == before[1:]


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's process table")
def test_processes_die_together_go_on_and_stop_politely(tmp_path: Path) -> None:
    """One is killed and all go on; the job is asked to stop; a sweep of one run ends it.

    Weights are in shards, and are scored before they are saved. One that is killed for good is for
    the drill (`tests.drill`).
    """
    scored = ("trainer.validate_every=10", "trainer.validation_rows=4", "parallel.strategy=fsdp2")
    command = (*TWO, *scored, "trainer.max_steps=120", "trainer.checkpoint_every=10")
    runs = tmp_path / "runs" / "smoke"

    process = start("train", *command, "parallel.restarts=1", cwd=tmp_path)
    try:
        wait_for_rows(runs, 20, process)
        (run,) = runs.iterdir()
        first = workers(process)
        os.kill(first[-1], signal.SIGKILL)
        wait_until(lambda: len(workers(process)) == 2 and not set(workers(process)) & set(first))
        wait_for_rows(runs, 45, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (143, "")
    said = [line for line in err.splitlines() if not line.startswith("training ")]
    assert (
        said[0]
        == "train: process 1 was killed by SIGKILL: restart 1 of 1, from the newest checkpoint"
    )
    assert said[1].endswith("saved; the same command goes on from there") and len(said) == 2, err

    status, out, err = launch("train", "-m", *command, "seed=0", cwd=tmp_path)
    assert (status, out) == (0, f"run: {run.relative_to(tmp_path)}\n"), err
    assert list(runs.glob("[a-z]*")) == [run]
    assert [int(row["step"]) for row in metrics(run)] == list(range(1, 121))


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's process table")
def test_ctrl_c_ends_processes_that_still_start(tmp_path: Path) -> None:
    """At a terminal it reaches the job alone: its processes are sessions of their own."""
    process = start("train", *TWO, cwd=tmp_path)
    try:
        wait_until(lambda: len(workers(process)) == 2)
        time.sleep(2)  # they import
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120) == ("", "")
    finally:
        process.kill()
    assert process.returncode == 130


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_preempted_job_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    """With submitit's local executor, which queues as SLURM does."""
    pytest.importorskip("submitit")
    command = ("launcher=submitit", *QUICK, "trainer.max_steps=150")
    process = start("train", *command, "trainer.checkpoint_every=150", cwd=tmp_path)
    try:
        wait_for_rows(tmp_path / "runs" / "smoke", 30, process, "[a-z]*")
        job = next((tmp_path / "runs" / "smoke" / ".sweep" / ".submitit").glob("[0-9]*"))
        controller = int(job.name)
        listed = Path(f"/proc/{controller}/task/{controller}/children").read_text()
        os.kill(int(listed.split()[0]), signal.SIGUSR2)
        _, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    (run,) = (tmp_path / "runs" / "smoke").glob("[a-z]*")
    assert [int(row["step"]) for row in metrics(run)] == list(range(1, 151))
    log = "".join(path.read_text() for path in job.glob("*.err"))
    assert "saved; the same command goes on from there" in log
    assert log.count("training transformer, seed 0, from the beginning") == 1
    assert log.count("training transformer, seed 0, from step ") == 1


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_search_weighs_accuracy_against_cost_and_tells_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = (
        *("sweep=optuna", *QUICK, "trainer.max_steps=3", "hydra.sweeper.n_trials=3"),
        *("eval.items=4", "eval.latency_items=0", "eval.tasks.s3_swaps.levels=[2]"),
        *("backbone.num_layers=choice(1,2)", "optim.lr=tag(log,interval(0.001,0.1))"),
    )
    status, out, err = launch("train", *search, cwd=tmp_path)
    assert status == 0, err
    runs = [tmp_path / line.removeprefix("run: ") for line in out.splitlines() if "run: " in line]
    assert len(runs) == 3
    found = yaml.safe_load(
        (tmp_path / "runs" / "smoke" / ".sweep" / "optimization_results.yaml").read_text()
    )
    told = [list(returned(run, ["accuracy", "model_flops"])) for run in runs]
    assert all(solution["values"] in told for solution in found["solutions"])

    before = [snapshot(run) for run in runs]
    again = launch("train", *search, cwd=tmp_path)
    assert again[:2] == (0, out)
    assert [snapshot(run) for run in runs] == before


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_run_of_a_search_may_fail(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = ("sweep=optuna", *QUICK, "trainer.max_steps=3", "returns=[validation_loss]")
    wrong = ("hydra.sweeper.direction=minimize", "trainer.validate_every=3", "optim.lr=choice(0,1)")
    status, out, err = launch(
        "train", *search, *wrong, "hydra.sweeper.n_trials=6", "eval.after_training=false",
        cwd=tmp_path,
    )  # fmt: skip
    assert status == 0, err
    assert "run: " in out
    assert "train: optim.lr=0" in err


def test_sbatch_shows_an_array_of_a_job_for_each_run() -> None:
    pytest.importorskip("submitit")
    register_schemas()
    asked = ("launcher=slurm", "hydra.launcher.partition=gpu", "experiment=smoke")
    cluster = ("parallel.nodes=2", "parallel.devices=8", "trainer.rows_per_step=64")
    lines = script([*asked, *cluster, "seed=0,1,2", "optim.lr=0.01,0.02"]).splitlines()
    for option in (
        *("array=0-5%6", "partition=gpu", "nodes=2", "ntasks-per-node=1", "gpus-per-node=8"),
        *("job-name=smoke", "requeue", "signal=USR2@300", "time=1440"),
    ):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --array=0-2%3" in script([*asked, "sweep=seeds"]).splitlines()
    assert "--array" not in script(asked)
    with pytest.raises(ValueError, match="add launcher=slurm"):
        script(["experiment=smoke"])


def test_several_machines_are_started_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not starts_processes(ParallelConfig())
    assert starts_processes(ParallelConfig(devices=2))
    with pytest.raises(ValueError, match="torchrun --nnodes=2 --nproc-per-node=8 "):
        starts_processes(ParallelConfig(devices=8, nodes=2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert not starts_processes(ParallelConfig(devices=8, nodes=2))
    with pytest.raises(ValueError, match="torchrun started 16 processes, but"):
        starts_processes(ParallelConfig(devices=8))


def test_what_a_search_asks_must_be_known() -> None:
    check_returns(["validation_loss"], evaluated=False)
    check_returns(["accuracy", "total_steps"], evaluated=True)
    with pytest.raises(ValueError, match="returns=cost is not known: choose some of accuracy, "):
        check_returns(["cost"], evaluated=True)
    with pytest.raises(ValueError, match=r"returns=accuracy comes from .* set eval.after_training"):
        check_returns(["accuracy"], evaluated=False)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("returns", "direction"),
    [("[acuracy]", "maximize"), ("[acuracy,model_flops]", "[maximize,minimize]")],
)
def test_a_search_of_which_every_run_fails_has_failed(
    tmp_path: Path, returns: str, direction: str
) -> None:
    pytest.importorskip("optuna")
    search = ("sweep=optuna", *QUICK, "hydra.sweeper.n_trials=1", f"returns={returns}")
    ways = f"hydra.sweeper.direction={direction}"
    status, _, err = launch("train", *search, ways, "seed=choice(0,1)", cwd=tmp_path)
    assert status == 1
    assert "returns=acuracy is not known" in err
    assert err.splitlines()[-1] == "train: all 1 runs of the search failed: see above"


def test_a_failed_job_is_one_line() -> None:
    account = (
        "Job 31224 (task: 0) with path /runs/.submitit/31224/31224_0_result.pkl\n"
        "has not produced any output (state: FINISHED)\nError stream produced:\n"
        "----------------------------------------\ntraining transformer\ntrain: loss nan\n\n"
    )
    assert _failed(account).startswith("job 31224 (task: 0): loss nan; the others go on")
    assert _failed("Job 7 vanished").startswith("job 7 vanished: it said nothing")
