"""The verb that prints problems, as a person meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.inspect import main
from data.split import problem_at
from data.task_list import TASKS
from data.tasks.task import TRACES

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def parts(out: str, label: str) -> list[str]:
    """What stands under a label, for each problem, on one line."""
    found: list[list[str]] = []
    inside = False
    for line in out.splitlines():
        if line[:2] == "  " and line[2:3] != " ":
            inside = line.split()[0] == label
            if inside:
                found.append(line.split()[1:])
        elif inside and line.startswith("    "):
            found[-1] += line.split()
        else:
            inside = False
    return [" ".join(words) for words in found]


def test_three_problems_with_question_answer_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "task=phop", "level=8", "trace=full")
    problems = [problem_at("phop", 8, "train", 0, index) for index in range(3)]
    assert parts(out, "question") == [problem.question for problem in problems]
    assert parts(out, "trace") == [" ".join(problem.steps) for problem in problems]
    assert parts(out, "answer") == [problem.answer for problem in problems]


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_and_trace(capsys: pytest.CaptureFixture[str], name: str, trace: str) -> None:
    out = run(capsys, f"task={name}", f"trace={trace}", "count=2", "seed=5")
    problems = [problem_at(name, TASKS[name].levels[0], "train", 5, index) for index in range(2)]
    assert parts(out, "answer") == [problem.answer for problem in problems]
    steps = [" ".join(TASKS[name].trace(problem, trace)) or "(none)" for problem in problems]
    assert parts(out, "trace") == steps


def test_long_lines_are_wrapped(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = run(capsys, "task=igsm", "level=24", "trace=verbose")
    assert max(map(len, out.splitlines())) <= 60


def test_a_train_only_level_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "train-only" in run(capsys, "task=parity", "level=4")
    assert "train-only" not in run(capsys, "task=parity", "level=16")


def test_without_a_task_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys)
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()}
    for name, task in TASKS.items():
        assert task.capability in rows[name]
        assert f"{task.chance(task.levels[len(task.levels) // 2]):.3g}" in rows[name]
    assert max(map(len, out.splitlines())) <= 110


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--help")
    assert all(word in out for word in ("task=", "level=", "trace=", "split", *TASKS, *TRACES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tsk=phop"], "tsk=phop is not a switch: use key=value with a key of task, level"),
        (["phop"], "phop is not a switch"),
        (["task=phopp"], "task=phopp is not a task: use one of parity"),
        (["task="], "task= is not a task"),
        (["task=phop", "level=99"], "level=99 is not a level of phop: use 1 to 32"),
        (["task=phop", "level=eight"], "level=eight is not possible: level is a whole number"),
        (["task=phop", "level=[1"], "level=[1 is not possible"),
        (
            ["task=phop", "trace=long"],
            "trace=long is not a trace mode of phop: use one of none, short",
        ),
        (["task=phop", "count=0"], "count=0 is not possible"),
        (["task=phop", "split=dev"], "split=dev is not a split: use one of train"),
        (["task=parity", "level=4", "split=test"], "parity level 4 is train-only"),
        (["level=4"], "task=NAME is missing"),
        (["task=${x}"], "Interpolation key 'x' not found"),
    ],
)
def test_mistakes_give_one_line(capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"data.inspect: {message}") and err.count("\n") == 1


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "data.inspect", "task=phop", "level=8", "trace=full"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(parts(done.stdout, "answer")) == 3 and done.stderr == ""
    wrong = subprocess.run(
        [*command, "levle=3"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2 and "levle=3 is not a switch" in wrong.stderr
