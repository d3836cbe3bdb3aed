"""Conformance of every borrowed task: nothing of it is trusted."""

import os
import random
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.adapters.adapter import BorrowedTask
from data.adapters.borrowed import PACKAGES, installed_tasks
from data.document import LossWeights, document_text, encode_document
from data.split import evaluation_problems, problem_at, split_of
from data.task_list import find_task
from data.tasks.task import Problem
from data.tokenizer import ByteTokenizer

pytest.importorskip("reasoning_gym")

TASKS = installed_tasks()
EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
ROOT = Path(__file__).parents[2]


def levels_of(task: BorrowedTask) -> tuple[int, ...]:
    return (*task.levels, *task.beyond)


def draw(task: BorrowedTask, level: int, count: int) -> list[Problem]:
    return [problem_at(task.name, level, "train", 0, index) for index in range(count)]


def check(task: BorrowedTask, level: int, count: int) -> None:
    """What the issue of a corpus asks of every task."""
    problems = draw(task, level, count)
    rng, taken = random.Random(level), 0
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        assert task.verify(problem, problem.answer)
        assert task.verify(problem, f"  {problem.answer}\n")
        if other.answer != problem.answer and not both_right(task, problem, other):
            taken += task.verify(problem, other.answer)
        for junk in ("", "?", "\x00", "None", "[", "9" * 5_000, "-1e999", junk_of(rng)):
            assert task.verify(problem, junk) in (True, False)
        assert not task.verify(problem, f"{problem.answer} ~ {other.answer} ~")
        assert split_of(task.name, problem.question) == "train"
        for mode in task.traces:
            steps = task.trace(problem, mode)
            assert not steps or " ".join(steps).endswith(problem.answer)
    assert taken == 0 if task.unique else taken < count / 10
    questions = {problem.question for problem in problems}
    assert len(questions) > 0.95 * count


def both_right(task: BorrowedTask, problem: Problem, other: Problem) -> bool:
    """Some answers mean the same; then the verifier must say so in both directions."""
    return task.verify(problem, other.answer) and task.verify(other, problem.answer)


def junk_of(rng: random.Random) -> str:
    return "".join(rng.choices(string.printable, k=rng.randrange(1, 30)))


@EACH_TASK
def test_answers_are_accepted_and_garbage_never_raises(task: BorrowedTask) -> None:
    for level in (task.levels[0], task.beyond[-1]):
        check(task, level, 12)


@pytest.mark.nightly
@EACH_TASK
def test_a_thousand_problems_of_each_level(task: BorrowedTask) -> None:
    for level in levels_of(task):
        check(task, level, 1_000 if task.guess_sample > 100 else 100)


@EACH_TASK
def test_documents_come_back_as_bytes(task: BorrowedTask) -> None:
    tokenizer = ByteTokenizer()
    problem = draw(task, task.levels[1], 1)[0]
    for trace in task.traces:
        document = encode_document(problem, trace, tokenizer, LossWeights())
        assert tokenizer.decode(document.tokens) == document_text(problem, trace)


@EACH_TASK
def test_an_item_stands_alone(task: BorrowedTask) -> None:
    """Whatever was drawn before it."""
    first = problem_at(task.name, task.levels[0], "train", 3, 5)
    draw(task, task.levels[0], 3)
    assert problem_at(task.name, task.levels[0], "train", 3, 5) == first
    assert problem_at(task.name, task.levels[0], "train", 3, 6) != first
    assert problem_at(task.name, task.levels[0], "train", 2, 6) != first


DIGEST = """
import hashlib
from data.adapters.borrowed import installed_tasks
from data.split import problem_at
items = [problem_at(name, level, "train", 7, index) for name, task in installed_tasks().items()
         for level in (task.levels[0], task.levels[-1]) for index in range(4)]
print(hashlib.sha256(repr(items).encode()).hexdigest())
"""


@pytest.mark.multiprocess
def test_items_are_the_same_whatever_the_hash_seed() -> None:
    digests = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


@EACH_TASK
def test_evaluation_has_enough_questions(task: BorrowedTask) -> None:
    assert len(evaluation_problems(task.name, task.levels[0], "test", 0, 20)) == 20


def test_chance_is_measured() -> None:
    assert find_task("rg_course_schedule").chance(2) == pytest.approx(0.5, abs=0.1)
    assert find_task("rg_products").chance(1) < 0.01


def test_a_stored_answer_that_its_verifier_rejects_is_counted() -> None:
    class Wrong(type(TASKS["rg_products"])):  # type: ignore[misc]
        def item(self, level: int, number: int) -> Problem:
            problem = super().item(level, number)
            if number % 2:
                return Problem(**{**problem.__dict__, "answer": "no number"})
            return problem

    whole = TASKS["rg_products"]
    task = Wrong("products", "arithmetic", whole._settings, False)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    assert all(task.draw(rng, 1).answer != "no number" for _ in range(20))
    assert task.rejections.count > 5
    assert "rg_products, level 1, item " in task.rejections.example
    assert "its own verifier rejects 'no number'" in task.rejections.example


def test_a_task_that_gives_only_wrong_answers_says_so() -> None:
    class Broken(type(TASKS["rg_products"])):  # type: ignore[misc]
        def item(self, level: int, number: int) -> Problem:
            raise RuntimeError("no such item")

    task = Broken("products", "arithmetic", lambda level: {}, False)
    with pytest.raises(ValueError, match=r"rg_products level 1: 100 items .* no such item"):
        task.draw(np.random.default_rng(0), 1)


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"task=rg_sums is not a task of reasoning_gym: .*rg_lcm"):
        find_task("rg_sums")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "rc_", ("no_such_package", "reasoning-core"))
    with pytest.raises(ValueError, match=r"task=rc_nothing needs the package no_such_package: pip"):
        find_task("rc_nothing")
