"""Every task at every level of its lists, over many problems: a few here, a thousand nightly.

A task joins by being registered: nothing here names one but the three whose traces were published
before traces had to end in the whole answer.
"""

from collections import Counter

import numpy as np
import pytest

from data.task_list import TASKS
from data.tasks.task import TRACES, Problem, Task
from data.vocabulary import symbolic_vocabulary

# Their traces end in the answer's parts: query by query, each token twice, lowest digit first.
END_IN_PARTS = {"mqar", "selective_copy", "addition"}
STRANGE = ("", " ", "\t\n", "\x00", "\ud800", "１", "<eos>", "+-", "-0", "e", "x", "999", "a b")
MOST_GUESSES = 20

EVERY_LEVEL = pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name, task in TASKS.items() for level in (*task.levels, *task.beyond)],
)


@EVERY_LEVEL
def test_fifty_problems(name: str, level: int) -> None:
    check(TASKS[name], level, 50)


@pytest.mark.nightly
@EVERY_LEVEL
def test_a_thousand_problems(name: str, level: int) -> None:
    check(TASKS[name], level, 1000)


def check(task: Task, level: int, count: int) -> None:
    rng = np.random.default_rng((level, count))
    problems = [task.sample(rng, level) for _ in range(count)]
    check_verifier(task, problems, rng)
    for problem in problems:
        check_ends_of_traces(task, problem)
    check_chance(task, problems)


def check_verifier(task: Task, problems: list[Problem], rng: np.random.Generator) -> None:
    """The answer is taken, one changed symbol is refused, and nothing raises."""
    alphabet = sorted({symbol for problem in problems for symbol in problem.answer.split()})
    vocabulary, refused = symbolic_vocabulary(), 0
    for problem in problems:
        assert task.verify(problem, problem.answer)
        changed = with_another_symbol(problem.answer.split(), alphabet, rng)
        accepted = task.verify(problem, changed)
        assert not (task.unique and accepted)
        refused += not accepted
        words = (*vocabulary, *STRANGE)
        junk = " ".join(words[i] for i in rng.integers(len(words), size=rng.integers(1, 9)))
        shuffled = " ".join(rng.permutation(problem.answer.split()).tolist())
        for text in (junk, shuffled, f"{problem.answer} {junk}", problem.question, *STRANGE):
            accepted = task.verify(problem, text)
            assert isinstance(accepted, bool)
            if task.unique:
                assert accepted == (text.split() == problem.answer.split())
    assert refused > 0.5 * len(problems)


def with_another_symbol(answer: list[str], alphabet: list[str], rng: np.random.Generator) -> str:
    """The answer with one symbol swapped for another that answers of the level have."""
    place = int(rng.integers(len(answer)))
    others = [symbol for symbol in alphabet if symbol != answer[place]]
    changed = others[int(rng.integers(len(others)))]
    return " ".join([*answer[:place], changed, *answer[place + 1 :]])


def check_ends_of_traces(task: Task, problem: Problem) -> None:
    answer = problem.answer.split()
    for mode in TRACES[1:]:
        trace = " ".join(task.trace(problem, mode)).split()
        if task.name in END_IN_PARTS:
            assert Counter(answer) <= Counter(trace)
        else:
            assert trace[-len(answer) :] == answer


def check_chance(task: Task, problems: list[Problem]) -> None:
    """The best constant of one half, scored on the other, is right as often as `chance` says.

    Never more often and, where the task says that a constant attains it, never less.
    """
    half = len(problems) // 2
    chosen, scored = problems[:half], problems[half:]
    guesses = Counter(problem.answer for problem in chosen).most_common(MOST_GUESSES)
    best = max((answer for answer, _ in guesses), key=lambda guess: hits(task, chosen, guess))
    rate, chance = hits(task, scored, best) / half, task.chance(problems[0].level)
    assert 0 < chance <= 1
    slack = 4 * (chance * (1 - chance) / half) ** 0.5 + 1 / half
    assert rate <= chance + slack
    if task.constant_attains_chance:
        assert rate >= chance - slack


def hits(task: Task, problems: list[Problem], guess: str) -> int:
    """How many of the problems a guess answers."""
    return sum(task.verify(problem, guess) for problem in problems)
