"""What the recall tasks promise beyond the conformance of every task."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from data.task_list import TASKS
from data.tasks.fuzzy_recall import KEY_LETTERS, VALUE_LETTERS
from data.tasks.mqar import KEYS, VALUES
from data.tasks.noisy_recall import NOISE
from data.tasks.task import Problem

RECALL = ("noisy_recall", "fuzzy_recall", "changing_recall")


def draw(name: str, level: int, count: int) -> list[Problem]:
    rng = np.random.default_rng((level, count))
    return [TASKS[name].sample(rng, level) for _ in range(count)]


def parts(problem: Problem) -> tuple[list[str], list[str]]:
    stream, queries = problem.question.split(" ? ")
    return stream.split(), queries.split()


@pytest.mark.parametrize("name", RECALL)
def test_traces_are_the_answer_the_lookups_and_what_the_stream_says(name: str) -> None:
    for problem in draw(name, 8, 20):
        full = TASKS[name].trace(problem, "full")
        verbose = TASKS[name].trace(problem, "verbose")
        assert " ".join(TASKS[name].trace(problem, "short")) == problem.answer
        assert full[-1] == f"= {problem.answer}" and len(full) == 8 + 1
        assert verbose[-len(full) :] == full
        notes = verbose[: -len(full)]
        assert len(notes) == (16 if name == "changing_recall" else 8)


def test_half_of_the_stream_is_noise_in_any_place() -> None:
    problems = draw("noisy_recall", 8, 600)
    is_noise = np.array([[len(symbol) == 1 for symbol in parts(p)[0]] for p in problems])
    assert (is_noise.sum(axis=1) == 16).all()
    assert np.abs(is_noise.mean(axis=0) - 1 / 2).max() < 5 * 0.5 / 600**0.5
    letters = Counter(symbol for p in problems for symbol in parts(p)[0] if len(symbol) == 1)
    assert set(letters) == set(NOISE) and min(letters.values()) > 0.8 * 600


def test_no_fixed_shift_finds_the_value() -> None:
    """The symbol after a key is its value only where no noise fell between: half the time."""
    right = asked = 0
    for problem in draw("noisy_recall", 8, 200):
        stream, queries = parts(problem)
        for query, value in zip(queries, problem.answer.split(), strict=True):
            right += stream[stream.index(query) + 1] == value
            asked += 1
    assert right / asked == pytest.approx(0.5, abs=0.06)


def test_notes_of_noise_are_the_pairs() -> None:
    for problem in draw("noisy_recall", 8, 20):
        notes = TASKS["noisy_recall"].trace(problem, "verbose")[:8]
        content = [symbol for symbol in parts(problem)[0] if symbol in (*KEYS, *VALUES)]
        assert " ".join(notes).split() == content


def test_motifs_have_each_length_alike() -> None:
    """Of values exactly; of keys nearly, since one letter soon comes up again."""
    values: Counter[int] = Counter()
    for problem in draw("fuzzy_recall", 4, 1000):
        values.update(len(value.split()) for value in problem.answer.split(" | "))
        assert set(problem.answer) <= {*VALUE_LETTERS, " ", "|"}
    assert set(values) == {1, 2, 3}
    assert all(count / 4000 == pytest.approx(1 / 3, abs=0.03) for count in values.values())


def test_the_likeliest_value_is_a_single_letter() -> None:
    """One in 24 for each of the eight, which is what `chance` takes in every place."""
    answers = Counter(problem.answer for problem in draw("fuzzy_recall", 1, 4000))
    chance = TASKS["fuzzy_recall"].chance(1)
    spread = 4 * (chance * (1 - chance) / 4000) ** 0.5
    assert chance == 1 / 24 and TASKS["fuzzy_recall"].chance(3) == pytest.approx(chance**3)
    assert all(abs(answers[letter] / 4000 - chance) < spread for letter in VALUE_LETTERS)
    assert {answer for answer, _ in answers.most_common(8)} == set(VALUE_LETTERS)


def test_keys_often_begin_or_end_alike() -> None:
    """So that one symbol of a key doesn't say which key it is."""
    shared = 0
    for problem in draw("fuzzy_recall", 8, 100):
        keys = problem.question.split(" ? ")[1].split(" | ")
        assert len(set(keys)) == len(keys) == 8
        assert {letter for key in keys for letter in key.split()} <= set(KEY_LETTERS)
        last = Counter(key[-1] for key in keys)
        shared += sum(count for count in last.values() if count > 1)
    assert shared / 800 > 0.5


def test_every_key_is_written_and_half_of_the_writes_are_rewrites() -> None:
    for problem in draw("changing_recall", 8, 100):
        stream, queries = parts(problem)
        writes = Counter(stream[::2])
        assert set(writes) == set(queries) and sum(writes.values()) == 2 * len(writes) == 16


def test_rewrites_stand_among_the_first_writes() -> None:
    """Any order of the writes is as likely: hardly ever are all keys written before a rewrite."""
    problems = draw("changing_recall", 8, 200)
    late = sum(len(set(parts(problem)[0][:16:2])) == 8 for problem in problems)
    assert late < 10


def test_the_first_value_is_right_for_a_third() -> None:
    """A key keeps its first value where none of n uniform rewrites hits it: (1 - 1/n)^n."""
    right = 0
    for problem in draw("changing_recall", 8, 400):
        stream, queries = parts(problem)
        right += sum(
            stream[stream.index(query) + 1] == value
            for query, value in zip(queries, problem.answer.split(), strict=True)
        )
    assert right / 3200 == pytest.approx((7 / 8) ** 8, abs=0.04)


def test_notes_of_changes_name_what_was_replaced() -> None:
    for problem in draw("changing_recall", 8, 20):
        notes = [step.split() for step in TASKS["changing_recall"].trace(problem, "verbose")[:16]]
        table: dict[str, str] = {}
        for note in notes:
            assert note[1:-1] == ([table[note[0]], ">"] if note[0] in table else [])
            table[note[0]] = note[-1]
        assert [table[query] for query in parts(problem)[1]] == problem.answer.split()


def test_streams_are_counted_exactly() -> None:
    """Enumerated for 2 keys: 4 writes in which both occur, whatever the values."""
    streams = {order for first in range(2) for order in permutations((0, 1, first, 0))}
    streams |= {order for first in range(2) for order in permutations((0, 1, first, 1))}
    assert len(streams) == 14
    values = 60 * 59 * 58 * 57
    assert TASKS["changing_recall"].num_problems(2) == (60 * 59 // 2) * 14 * values * 2


def test_digits_are_assigned_alike() -> None:
    answers = Counter(problem.answer for problem in draw("var_assign", 4, 2000))
    # Chi-square with 9 degrees of freedom exceeds 33.7 once in 10,000.
    assert sum((answers[str(digit)] - 200) ** 2 / 200 for digit in range(10)) < 33.7
    assert TASKS["var_assign"].chance(4) == 1 / 10


@pytest.mark.parametrize("level", [1, 4, 16])
def test_no_place_or_name_gives_the_assigned_digit_away(level: int) -> None:
    """First, last and nearest digit, and each of the chains' ends, are right one time in three."""
    right: Counter[str] = Counter()
    problems = draw("var_assign", level, 900)
    for problem in problems:
        digits = [symbol for symbol in problem.symbols if symbol.isdigit()]
        assert len(set(digits)) == len(digits) == 3 and problem.answer in digits
        read = set(problem.symbols[2:-2:4])
        ends = [symbol for symbol in problem.symbols[0:-2:4] if symbol not in read]
        guesses = {"first": digits[0], "last": digits[-1], "smallest": min(digits)}
        right.update(name for name, guess in guesses.items() if guess == problem.answer)
        right["end"] += ends[0] == problem.symbols[-1]
        assert len(ends) == 3
    for name in ("first", "last", "smallest", "end"):
        assert right[name] / 900 == pytest.approx(1 / 3, abs=4 * (2 / 9 / 900) ** 0.5)


def test_assignments_are_followed_back_and_forth() -> None:
    for problem in draw("var_assign", 5, 20):
        full = TASKS["var_assign"].trace(problem, "full")
        verbose = TASKS["var_assign"].trace(problem, "verbose")
        statements = problem.question.split(" ? ")[0].split(" ; ")
        assert set(full) <= set(statements) and len(full) == 6
        assert full[0].split()[0] == problem.symbols[-1]
        assert verbose[:6] == full and len(verbose) == 11
        assert verbose[-1] == f"{problem.symbols[-1]} = {problem.answer}"
