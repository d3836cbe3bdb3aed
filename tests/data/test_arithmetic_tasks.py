"""What the tasks of arithmetic, sums to a target and small programs promise beyond conformance."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from data.task_list import TASKS
from data.tasks.mano import value_distribution
from data.tasks.mnns import share_answered
from data.tasks.multiplication import most_divisors
from data.tasks.small_program import executed
from data.tasks.task import Problem

Guess = Callable[[Problem], str]


def draw(name: str, level: int, count: int) -> list[Problem]:
    rng = np.random.default_rng((level, count))
    return [TASKS[name].sample(rng, level) for _ in range(count)]


def share_right(name: str, problems: list[Problem], guess: Guess) -> float:
    return sum(TASKS[name].verify(p, guess(p)) for p in problems) / len(problems)


def chi_square(answers: list[str], values: int) -> float:
    counts = Counter(answers)
    expected = len(answers) / values
    return sum((counts[str(v)] - expected) ** 2 / expected for v in range(values))


# --- expressions ---


def test_values_of_expressions_are_distributed_as_enumerated() -> None:
    """One operator: each of 3 x 23 x 23 expressions counted, 0 being the likeliest by products."""
    counts = Counter(
        value % 23
        for left, right in product(range(23), repeat=2)
        for value in (left + right, left - right, left * right)
    )
    exact = [counts[value] / (3 * 23**2) for value in range(23)]
    assert value_distribution(1) == pytest.approx(exact)
    assert value_distribution(16).sum() == pytest.approx(1)
    assert TASKS["mano"].chance(16) == value_distribution(16)[0]


def test_expressions_take_every_shape() -> None:
    """Five for three operators, each with the probability that uniform splits give it."""
    shapes = Counter(
        re.sub(r"[+*-]", "o", re.sub(r"e\d+", "v", p.question)) for p in draw("mano", 3, 900)
    )
    assert len(shapes) == 5
    # Splits 0 + 2 and 2 + 0 have two shapes each (1/6 a shape), 1 + 1 has one (1/3).
    assert shapes["o o v v o v v"] / 900 == pytest.approx(1 / 3, abs=0.07)


def test_written_out_expressions_shrink_to_the_answer() -> None:
    for problem in draw("mano", 6, 30):
        rests = [step.split(" : ")[1] for step in TASKS["mano"].trace(problem, "verbose")]
        assert [len(rest.split()) for rest in rests] == [11, 9, 7, 5, 3, 1]
        assert rests[-1] == problem.answer


@pytest.mark.parametrize("level", [1, 2, 8])
def test_chains_give_each_answer_alike_and_hide_it_from_their_ends(level: int) -> None:
    problems = draw("mixed_chain", level, 1400)
    # Chi-square with 6 degrees of freedom exceeds 27.9 once in 10,000.
    assert chi_square([p.answer for p in problems], 7) < 27.9
    for place in (0, -1):
        rate = share_right("mixed_chain", problems, lambda p, place=place: p.symbols[place])
        assert rate < 1 / 7 + 0.06


def test_no_operator_binds_closer() -> None:
    problem = next(p for p in draw("mixed_chain", 2, 100) if p.symbols[1::2] == ("+", "*"))
    first, second, third = map(int, problem.symbols[::2])
    assert int(problem.answer) == (first + second) * third % 7


# --- multiplication ---


def test_partial_products_add_up() -> None:
    for problem in draw("multiplication", 4, 30):
        running = 0
        first, second = (int(factor.replace(" ", "")) for factor in problem.question.split("*"))
        for place, step in enumerate(problem.steps):
            left, factor, partial, total = (
                int(part.replace(" ", "")) for part in re.split(r" [*=:] ", step)
            )
            assert (left, factor) == (first, second // 10**place % 10 * 10**place)
            assert partial == left * factor
            running += partial
            assert total == running


def test_every_digit_of_the_written_out_products_is_right() -> None:
    equation = re.compile(r"(\d) \* (\d) \+ (\d) = ([\d ]+?) (?=[,:])")
    for problem in draw("multiplication", 4, 30):
        for step in TASKS["multiplication"].trace(problem, "verbose"):
            found = equation.findall(step)
            assert len(found) == 4
            for digit, factor, carry, total in found:
                assert int(digit) * int(factor) + int(carry) == int(total.replace(" ", ""))


@pytest.mark.parametrize("level", [1, 2])
def test_chance_of_products_is_enumerated(level: int) -> None:
    factors = range(10 ** (level - 1), 10**level)
    counts = Counter(first * second for first in factors for second in factors)
    assert TASKS["multiplication"].chance(level) == max(counts.values()) / len(factors) ** 2


def test_the_bound_on_products_is_the_most_divisors() -> None:
    divisors = np.zeros(10_000, dtype=int)
    for divisor in range(1, 10_000):
        divisors[::divisor] += 1
    assert most_divisors(10_000) == divisors[1:].max() == 64
    # It bounds the enumerated chance from above, and by less than ten times.
    exact = TASKS["multiplication"].chance(3)
    assert exact <= most_divisors(10**6) / 900**2 < 10 * exact


# --- signs to a target ---


@pytest.mark.parametrize("minus", [0, 1, 2])
def test_chance_of_signs_is_enumerated(minus: int) -> None:
    """All pairs of numbers and all hidden signs: how often fixed signs reach the target."""
    fixed = [1] * (2 - minus) + [-1] * minus
    first, second = (axis.ravel() for axis in np.mgrid[10:100, 10:100])
    guess = fixed[0] * first + fixed[1] * second
    rates = [
        np.mean(guess == np.abs(left * first + right * second))
        for left, right in product((1, -1), repeat=2)
    ]
    assert share_answered(2, minus) == pytest.approx(np.mean(rates))


def test_chance_of_three_signs_is_that_of_a_large_sample() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(10, 100, size=(400_000, 3))
    targets = np.abs((numbers * rng.choice((1, -1), size=numbers.shape)).sum(axis=1))
    for minus in range(4):
        fixed = np.array([1] * (3 - minus) + [-1] * minus)
        rate = np.mean(numbers @ fixed == targets)
        assert rate == pytest.approx(share_answered(3, minus), abs=4 * 0.5 / 400_000**0.5)


def test_every_choice_of_signs_that_reaches_the_target_is_taken() -> None:
    several = 0
    for problem in draw("mnns", 8, 40):
        shown, target = problem.question.replace(" ", "").split("?")
        numbers = [int(number) for number in shown.split(",")]
        right = []
        for signs in product("+-", repeat=8):
            total = sum(n if sign == "+" else -n for n, sign in zip(numbers, signs, strict=True))
            assert TASKS["mnns"].verify(problem, " ".join(signs)) == (total == int(target))
            right += [" ".join(signs)] * (total == int(target))
        assert right[0] == problem.answer
        several += len(right) > 1
    assert several > 5


def greedy(problem: Problem) -> str:
    """The largest number first, signed towards what is left to reach."""
    shown, target = problem.question.replace(" ", "").split("?")
    numbers, left = [int(number) for number in shown.split(",")], int(target)
    signs = [""] * len(numbers)
    for index in sorted(range(len(numbers)), key=lambda index: -numbers[index]):
        signs[index] = "+" if left >= 0 else "-"
        left -= numbers[index] if left >= 0 else -numbers[index]
    return " ".join(signs)


@pytest.mark.parametrize(("level", "highest"), [(6, 0.42), (10, 0.17)])
def test_the_greedy_rule_fails_mostly(level: int, highest: float) -> None:
    assert share_right("mnns", draw("mnns", level, 800), greedy) < highest


def test_only_tries_that_lead_nowhere_are_marked() -> None:
    for problem in draw("mnns", 5, 40):
        shown, target = problem.question.replace(" ", "").split("?")
        numbers = [int(number) for number in shown.split(",")]
        for index, step in enumerate(TASKS["mnns"].trace(problem, "verbose")[:-1]):
            tries = [text.replace(" ", "").split("=") for text in step.split(" # ")]
            assert (len(tries) == 2) == (problem.answer.split()[index] == "-")
            for attempt, total in tries:
                assert eval_sum(attempt) == int(total)
            rest = numbers[index + 1 :]
            ends = {
                int(total) + sum(s * n for s, n in zip(signs, rest, strict=True))
                for total in (tries[0][1],)
                for signs in product((1, -1), repeat=len(rest))
            }
            assert (int(target) in ends) == (len(tries) == 1)


def eval_sum(text: str) -> int:
    """`-46+13` is -33."""
    return sum(map(int, re.findall(r"[+-]?\d+", text)))


# --- small programs ---


@pytest.mark.parametrize("level", [2, 8, 24])
def test_programs_give_each_answer_alike(level: int) -> None:
    answers = [problem.answer for problem in draw("small_program", level, 2000)]
    # Chi-square with 9 degrees of freedom exceeds 33.7 once in 10,000.
    assert chi_square(answers, 10) < 33.7


def test_every_step_sets_what_a_later_one_reads() -> None:
    """Followed back from the asked register over the program as it runs."""
    for problem in draw("small_program", 12, 100):
        needed = {problem.symbols[-1]}
        for step in reversed(list(executed(problem.question))):
            assert step.register in needed
            *condition, update = step.instruction.split(" : ")
            if not condition:
                needed.discard(step.register)
            reads = (" ".join(condition) + " " + update.split(" = ")[1]).split()
            needed |= set(reads) & set("abc")


def test_programs_branch_and_loop() -> None:
    problems = draw("small_program", 16, 200)
    steps = [step for problem in problems for step in executed(problem.question)]
    conditional = [step for step in steps if "<" in step.instruction]
    assert 0.2 < len(conditional) / len(steps) < 0.4
    assert 0.3 < sum(step.done for step in conditional) / len(conditional) < 0.7
    assert sum("#" in problem.symbols for problem in problems) > 150
    assert len({symbol for problem in problems for symbol in problem.symbols}) == len(
        "abc0123456789+-*=<:;?#()"
    )


def without_loops(problem: Problem) -> str:
    """What the program gives where each loop is run once."""
    return list(executed(re.sub(r"# \d \(", "# 1 (", problem.question)))[-1].value


def without_conditions(problem: Problem) -> str:
    """... and where each condition is taken to hold."""
    return list(executed(re.sub(r"\w < \w : ", "", problem.question)))[-1].value


def second_half(problem: Problem) -> str:
    """... and where the first half of the steps is left out."""
    program, asked = problem.question.split(" ? ")
    instructions = [step.instruction for step in executed(problem.question)]
    kept = " ; ".join((program.split(" ; ")[0], *instructions[len(instructions) // 2 :]))
    return list(executed(f"{kept} ? {asked}"))[-1].value


@pytest.mark.parametrize(
    ("shortcut", "highest"), [(without_loops, 0.3), (without_conditions, 0.5), (second_half, 0.25)]
)
def test_shortcuts_through_a_program_fail(shortcut: Guess, highest: float) -> None:
    assert share_right("small_program", draw("small_program", 16, 400), shortcut) < highest
