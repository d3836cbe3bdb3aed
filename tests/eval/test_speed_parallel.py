"""The suite trains real runs of several processes; what it says of them is what they wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eval.speed import main, parse
from eval.speed_parallel import BACKBONES, ROUGH, ParallelSpeedConfig, ways_of
from eval.speed_parallel_rows import ParallelRow, Way, judge_parallel, parallel_table, wrong_losses
from eval.speed_parallel_runs import RunFailed, Steps, read_steps, run_to_end

TINY = ["dim=16", "head_dim=8", "layers=4", "context=32", "batch=2", "steps=3", "rounds=1"]
SUITE = ["suite=parallel", *TINY]


def measured(folder: Path, *arguments: str) -> dict[str, Any]:
    output = folder / "parallel.json"
    assert main([*SUITE, *arguments, f"output={output}"]) == 0
    return json.loads(output.read_text())


@pytest.mark.multiprocess
def test_two_processes_stand_beside_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    content = measured(tmp_path, "backbones=[looped]", "ways=[single,fsdp2]")
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"speed: {tmp_path / 'parallel.json'}"
    assert "looped: fsdp2, 2 processes of 1 thread, round 1 of 1" in told.err
    assert "all ways ended with the same loss, within 1e-05" in told.out
    one, two = content["rows"]
    assert [(row["processes"], row["strategy"]) for row in (one, two)] == [
        (1, "single"),
        (2, "fsdp2"),
    ]
    assert two["over_the_first"] == pytest.approx(two["median"] / one["median"])
    assert two["efficiency"] == pytest.approx(0.5 / two["over_the_first"])
    assert 0 <= two["loss_apart"] < 1e-5 and two["last_losses"] != [0.0]
    assert one["tokens_per_second"] * one["median"] <= 64
    assert len(two["seconds"]) == 1 and content["targets"] == content["failures"] == []
    assert "| looped | fsdp2 | 2 | 1 |" in (tmp_path / "parallel.md").read_text()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_every_backbone_is_trained_in_every_way(tmp_path: Path) -> None:
    together = measured(tmp_path, "optim=muon")["rows"]
    assert len(together) == 4 * len(BACKBONES)
    assert all(row["loss_apart"] < ROUGH for row in together)
    alone = measured(tmp_path, "processes=1", "backbones=[transformer]", "rounds=2")["rows"]
    assert [(row["strategy"], row["processes"]) for row in alone] == [("single", 1), ("fsdp2", 1)]
    assert all(row["loss_apart"] < 1e-6 and len(row["seconds"]) == 2 for row in alone)


@pytest.mark.gpu
def test_the_suite_runs_on_this_gpu(tmp_path: Path) -> None:
    content = measured(tmp_path, "device=cuda", "processes=1", "backbones=[transformer]")
    assert len(content["targets"]) == 1


def metrics_of(folder: Path, seconds: list[float]) -> Path:
    path = folder / "metrics.csv"
    lines = [f"{n},{5 - n},{100 * n},{done}" for n, done in enumerate(seconds, start=1)]
    path.write_text("\n".join(["step,loss,tokens,seconds", *lines, ""]))
    return path


def test_steps_are_counted_from_the_one_before(tmp_path: Path) -> None:
    steps = read_steps(metrics_of(tmp_path, [9.0, 10.0, 10.5, 12.5]), warm_up=2)
    assert steps == Steps([0.5, 2.0], 100.0, 1.0)
    assert steps.median == 1.25


def row(way: Way, *rounds: tuple[float, float], loss: float = 2.0) -> ParallelRow:
    """Rounds of a first way's step seconds, and of this one's."""
    steps = [Steps([mine], 100.0, loss) for _, mine in rounds]
    first = [Steps([theirs], 100.0, 2.0) for theirs, _ in rounds]
    return ParallelRow("transformer", way, steps, first, Way("single", 1, 1))


def test_ratios_are_of_rounds_and_efficiency_is_of_all_threads() -> None:
    """A machine that is slow in one round is so for both ways."""
    found = row(Way("ddp", 2, 1), (1.0, 0.6), (10.0, 6.0), (1.0, 0.5))
    assert found.ratio == pytest.approx(0.6) and min(found.ratios) == 0.5
    assert found.efficiency == pytest.approx(1 / 1.2)
    assert found.tokens_per_second == pytest.approx(100 / 0.6)
    texts = [entry.text for entry in parallel_table([found], "a step", "").rows[0]]
    assert texts[:7] == ["transformer", "ddp", "2", "1", "0.6000", "x0.600", "x0.500 to x0.600"]
    assert texts[8:] == ["83%", "2.000000", "0.0e+00"]


def test_the_target_is_one_of_a_gpu_and_of_one_process() -> None:
    alone, two = Way("fsdp2", 1, 1), Way("fsdp2", 2, 1)
    rows = [row(alone, (1.0, 1.02)), row(alone, (1.0, 1.04)), row(two, (1.0, 1.02))]
    assert [found["reached"] for found in judge_parallel(rows, "cuda")] == [True, False]
    assert judge_parallel(rows, "cpu") == []


def test_another_loss_is_told() -> None:
    rows = [row(Way("ddp", 2, 1), (1.0, 1.0), loss=loss) for loss in (2.0, 2.00001, 2.1)]
    (said,) = wrong_losses(rows, 1e-5)
    assert said.startswith("transformer: ddp, 2 processes of 1 thread: the last loss is 5.0e-02")
    assert len(wrong_losses([row(Way("ddp", 2, 1), (1.0, 1.0), loss=float("nan"))], 1.0)) == 1


def test_a_run_that_fails_is_told_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFailed, match=r"^no such\nthing$"):
        run_to_end(["-c", "raise SystemExit('no such\\nthing')"], 1)
    with pytest.raises(RunFailed, match="status 3, without a word"):
        run_to_end(["-c", "raise SystemExit(3)"], 1)
    (tmp_path / "train.py").write_text("raise SystemExit('train: no room')")  # stands before ours
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "parallel.json"
    assert main([*SUITE, "backbones=[transformer]", f"output={output}"]) == 1
    failures = json.loads(output.read_text())["failures"]
    assert failures == ["transformer: single, 1 process of 1 thread: train: no room"]
    assert "train: no room" in output.with_suffix(".md").read_text()
    assert "same loss" not in capsys.readouterr().out


MEASURING = """
from tempfile import TemporaryDirectory
from eval.speed_parallel_runs import run_to_end, termination_cleans_up
with termination_cleans_up(), TemporaryDirectory(dir="temporary"):
    run = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(99)"
    run_to_end(["-c", run], 1)
"""


def test_a_run_ends_with_what_measures_it(tmp_path: Path) -> None:
    """Asked to end, a suite ends its run, and removes what it wrote."""
    told, temporary = tmp_path / "pid", tmp_path / "temporary"
    temporary.mkdir()
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURING], cwd=tmp_path, env=os.environ | path
    )
    try:
        while not (told.exists() and told.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    assert not list(temporary.iterdir())


def asked(*arguments: str) -> ParallelSpeedConfig:
    config = parse(["suite=parallel", *arguments])
    assert isinstance(config, ParallelSpeedConfig)
    return config


def test_ways_are_those_of_the_device() -> None:
    assert ways_of(asked("processes=4", "threads=2")) == [
        Way("single", 1, 2), Way("single", 1, 8), Way("ddp", 4, 2), Way("fsdp2", 4, 2)
    ]  # fmt: skip
    assert ways_of(asked("processes=1")) == [Way("single", 1, 1), Way("fsdp2", 1, 1)]
    assert ways_of(asked("ways=[fsdp2,ddp]"))[0] == Way("fsdp2", 2, 1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("backbones=[huge]", "backbones=.* some of transformer, gdn_hybrid, looped"),
        ("backbones=[]", "backbones=.* names none"),
        ("ways=[ddp,ddp]", "ways=.* each once"),
        ("optim=sgd", "optim=sgd is not known: choose adamw or muon"),
        ("threads=0", "threads=0 leaves"),
        ("warm_up=6", "warm_up=6 leaves none of steps=6"),
        ("warm_up=0", "warm_up=0 must be at least 1"),
        ("layers=6", "layers=6: looped needs a multiple of 4"),
        ("processes=3", "batch=8 can't be cut into 3 equal parts"),
        ("clock=process", "clock"),
    ],
)
def test_impossible_settings_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(["suite=parallel", argument])


def test_ways_need_their_processes() -> None:
    with pytest.raises(ValueError, match="ways: ddp and fsdp2 need processes=2 or more"):
        asked("ways=[single,ddp,fsdp2]", "processes=1")
