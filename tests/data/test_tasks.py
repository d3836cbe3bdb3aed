"""Conformance of every registered task, and an independent solver for each family."""

from collections import Counter
from functools import reduce
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.task_list import TASKS, find_task
from data.tasks.group_words import group_elements
from data.tasks.igsm import LAYERS, draw_expressions
from data.tasks.task import HIGHEST_LEVEL, TRACES, Problem, Task
from data.tokenizer import SymbolicTokenizer
from data.vocabulary import LEVELS, OPERATORS, task_token
from tests.data import solvers_graphs_and_puzzles as graphs_and_puzzles
from tests.data import solvers_recall_and_arithmetic as recall_and_arithmetic

SHARED = {*"0123456789", *"abcdefghijklmnopqrstuvwxyz", *OPERATORS}
EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
NAMES = st.sampled_from(sorted(TASKS))


def levels_of(task: Task) -> tuple[int, ...]:
    return tuple(sorted({task.lowest, *task.levels, *task.beyond, task.highest}))


def draw(task: Task, level: int, count: int, seed: int = 0) -> list[Problem]:
    rng = np.random.default_rng((seed, level))
    return [task.sample(rng, level) for _ in range(count)]


@EACH_TASK
def test_is_described(task: Task) -> None:
    assert TASKS[task.name] is task
    assert task.capability and task.licence and task.source
    assert list(task.levels) == sorted(set(task.levels))
    assert task.lowest <= min(task.levels)
    assert max(task.levels) < min(task.beyond) <= max(task.beyond) <= task.highest <= HIGHEST_LEVEL
    assert " " not in task_token(task.name) and f"L{task.highest}" in LEVELS


@EACH_TASK
def test_every_text_is_made_of_declared_symbols(task: Task) -> None:
    allowed, tokenizer = SHARED | task.symbols(), SymbolicTokenizer()
    for level in levels_of(task):
        for problem in draw(task, level, 3):
            texts = [problem.question, problem.answer, *problem.steps]
            texts += [step for mode in TRACES for step in task.trace(problem, mode)]
            for text in texts:
                assert text == " ".join(text.split()) and text
                assert set(text.split()) <= allowed
                assert tokenizer.decode(tokenizer.encode(text)) == text


@EACH_TASK
def test_traces_grow_with_the_mode_and_hold_the_answer(task: Task) -> None:
    for level in levels_of(task):
        for problem in draw(task, level, 5):
            traces = {mode: " ".join(task.trace(problem, mode)).split() for mode in TRACES}
            assert traces["none"] == []
            assert task.trace(problem, "full") == problem.steps
            lengths = [len(traces[mode]) for mode in ("short", "full", "verbose")]
            assert 0 < problem.minimal_trace <= lengths[0] <= lengths[1] < lengths[2]
            for mode in ("short", "full", "verbose"):
                assert Counter(problem.answer.split()) <= Counter(traces[mode])
            if len(problem.answer.split()) == 1:
                assert {traces[mode][-1] for mode in TRACES[1:]} == {problem.answer}


@EACH_TASK
def test_unknown_traces_and_levels_are_refused(task: Task) -> None:
    problem = draw(task, task.levels[0], 1)[0]
    with pytest.raises(ValueError, match=r"trace='long'.*none, short, full, verbose"):
        task.trace(problem, "long")
    for level in (task.lowest - 1, task.highest + 1, -1):
        with pytest.raises(ValueError, match=rf"level={level} .*{task.name}.*{task.highest}"):
            task.sample(np.random.default_rng(0), level)


@EACH_TASK
def test_labels_are_the_answers_of_the_prefixes(task: Task) -> None:
    for problem in draw(task, task.levels[-1], 5):
        if problem.labels is None:
            continue
        assert len(problem.labels) == len(problem.symbols)
        for index, label in enumerate(problem.labels):
            assert SOLVERS[task.name](problem.prefix(index), index + 1) == label


@EACH_TASK
def test_answers_agree_with_an_independent_solver(task: Task) -> None:
    for level in levels_of(task):
        for problem in draw(task, level, 20):
            assert (problem.task, problem.level) == (task.name, level)
            solution = SOLVERS[task.name](problem.question, level)
            assert task.verify(problem, solution)
            assert not task.unique or solution == problem.answer


@EACH_TASK
def test_the_generator_alone_decides(task: Task) -> None:
    level = task.levels[1]
    assert draw(task, level, 3, seed=1) == draw(task, level, 3, seed=1)
    assert draw(task, level, 3, seed=1) != draw(task, level, 3, seed=2)


@EACH_TASK
def test_no_constant_answer_beats_chance(task: Task) -> None:
    """The best constant is chosen on one half of the sample and scored on the other."""
    for level in {task.lowest, task.levels[len(task.levels) // 2]}:
        answers = [problem.answer for problem in draw(task, level, 1000)]
        best = Counter(answers[:500]).most_common(1)[0][0]
        rate, chance = answers[500:].count(best) / 500, task.chance(level)
        assert rate <= chance + 4 * (chance * (1 - chance) / 500) ** 0.5 + 1 / 500


@EACH_TASK
def test_the_number_of_problems_is_true(task: Task) -> None:
    level = task.lowest
    count = task.num_problems(level)
    if count is None:
        assert len({problem.question for problem in draw(task, level, 500)}) == 500
    else:
        # The chance to miss one of n questions in 30 n draws is n e^-30.
        sample = draw(task, level, min(30 * count, 3000))
        distinct = len({problem.question for problem in sample})
        assert distinct <= count
        assert count > 100 or distinct == count


@given(name=NAMES, seed=st.integers(0, 50), junk=st.text(max_size=40))
@settings(deadline=None, max_examples=150)
def test_verify_takes_the_answer_and_nothing_else(name: str, seed: int, junk: str) -> None:
    task = TASKS[name]
    problem = draw(task, task.levels[0], 1, seed)[0]
    symbols = problem.answer.split()
    assert task.verify(problem, problem.answer)
    assert task.verify(problem, "\n " + " \t ".join(symbols) + "  ")
    assert task.verify(problem, junk) == (junk.split() == symbols)
    for wrong in ("", f"{problem.answer} {symbols[0]}", f"{junk}?{problem.answer}", "\x00"):
        assert not task.verify(problem, wrong)


@EACH_TASK
def test_verify_never_raises(task: Task) -> None:
    problem = draw(task, task.levels[0], 1)[0]
    for garbage in (None, 3, b"1", "\ud800", "9" * 10_000):
        assert task.verify(problem, garbage) is False  # type: ignore[arg-type]


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"task=phopp .*parity.*phop"):
        find_task("phopp")


# --- independent solvers: from the question's text alone ---


def solve_group(degree: int, even_only: bool):
    """Multiply permutation matrices: a word read left to right, the first element applied first."""
    size = range(degree)
    matrices = [np.eye(degree, dtype=int)[:, list(p)] for p in permutations(size)]
    if even_only:
        matrices = [matrix for matrix in matrices if np.linalg.det(matrix) > 0]

    def solve(question: str, level: int) -> str:
        word = [matrices[int(symbol[1:])] for symbol in question.split()]
        product = reduce(lambda before, after: after @ before, word)
        return f"e{next(i for i, matrix in enumerate(matrices) if (matrix == product).all())}"

    return solve


def solve_phop(question: str, level: int) -> str:
    """The definition, word for word."""
    v = question.split()
    position = len(v) - 1
    for _ in range(level):
        position = max({0} | {j for j in range(1, position + 1) if v[j - 1] == v[position]})
        assert position > 0
    return v[position]


def solve_mqar(question: str, level: int) -> str:
    pairs, queries = (part.split() for part in question.split("?"))
    table = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert len(table) == level and sorted(queries) == sorted(table)
    return " ".join(table[query] for query in queries)


def solve_selective_copy(question: str, level: int) -> str:
    kept = question.replace(".", " ").split()
    assert len(kept) == level and len(question.split()) == 4 * level
    return " ".join(kept)


def solve_addition(question: str, level: int) -> str:
    operands = [int(operand.replace(" ", "")) for operand in question.split("+")]
    assert len(operands) == level and all(100 <= operand <= 999 for operand in operands)
    return " ".join(str(sum(operands)))


def solve_igsm(question: str, level: int) -> str:
    statements, asked = question.split(" ? ")
    defined = dict(statement.split(" = ") for statement in statements.split(" ; "))
    values: dict[str, int] = {}

    def value(symbol: str) -> int:
        if symbol.isdigit():
            return int(symbol)
        if symbol not in values:
            left, *rest = defined[symbol].split()
            result = value(left)
            if rest:
                other = value(rest[1])
                result = {"+": result + other, "-": result - other, "*": result * other}[rest[0]]
            values[symbol] = result % 7
        return values[symbol]

    answer = str(value(asked))
    assert sum(len(defined[name].split()) > 1 for name in values) == level
    return answer


SOLVERS = {
    "parity": lambda question, level: str(question.count("1") % 2),
    "s3": solve_group(3, even_only=False),
    "s3_swaps": solve_group(3, even_only=False),
    "a5": solve_group(5, even_only=True),
    "s5": solve_group(5, even_only=False),
    "phop": solve_phop,
    "mqar": solve_mqar,
    "selective_copy": solve_selective_copy,
    "addition": solve_addition,
    "igsm": solve_igsm,
    **recall_and_arithmetic.SOLVERS,
    **graphs_and_puzzles.SOLVERS,
}


# --- what single tasks promise ---


@pytest.mark.parametrize(("name", "order"), [("s3", 6), ("a5", 60), ("s5", 120)])
def test_groups_are_groups(name: str, order: int) -> None:
    assert len(TASKS[name].symbols()) == order == round(1 / TASKS[name].chance(4))


def test_swaps_are_the_three_transpositions() -> None:
    elements = group_elements(3, False)
    seen = {symbol for problem in draw(TASKS["s3_swaps"], 8, 20) for symbol in problem.symbols}
    moved = [sum(elements[int(symbol[1:])][x] != x for x in range(3)) for symbol in seen]
    assert moved == [2, 2, 2]


@pytest.mark.parametrize("level", [1, 2, 5, 6])
def test_chance_of_words_is_exact(level: int) -> None:
    """Enumerated: every product of the right parity is equally likely."""
    word_products = Counter({"e0": 1})
    solve = SOLVERS["s3"]
    for _ in range(level):
        grown: Counter[str] = Counter()
        for product, count in word_products.items():
            for swap in ("e1", "e2", "e5"):
                grown[solve(f"{product} {swap}", 2)] += count
        word_products = grown
    assert max(word_products.values()) / 3**level == pytest.approx(TASKS["s3_swaps"].chance(level))


def test_content_is_scattered_among_the_noise() -> None:
    """Every place is as likely as any other, and every token."""
    problems = draw(TASKS["selective_copy"], 16, 400)
    places = np.mean([[symbol != "." for symbol in problem.symbols] for problem in problems], 0)
    assert np.abs(places - 1 / 4).max() < 0.11
    tokens = Counter(token for problem in problems for token in problem.answer.split())
    assert len(tokens) == 16 and min(tokens.values()) > 300


@pytest.mark.parametrize("level", [2, 3])
def test_chance_of_sums_is_exact(level: int) -> None:
    uniform = np.full(900, 1 / 900)
    exact = reduce(np.convolve, [uniform] * level).max()
    assert TASKS["addition"].chance(level) == pytest.approx(exact)


def test_column_steps_give_the_sum() -> None:
    for problem in draw(TASKS["addition"], 32, 20):
        digits = [step.split()[0] for step in problem.steps]
        carry = problem.steps[-1].split()[2:]
        assert [symbol for symbol in carry if carry != ["0"]] + digits[
            ::-1
        ] == problem.answer.split()


def test_neighbours_differ_so_that_every_hop_moves() -> None:
    for problem in draw(TASKS["phop"], 8, 50):
        assert all(a != b for a, b in zip(problem.symbols, problem.symbols[1:], strict=False))


def test_the_reference_lengths_of_hops() -> None:
    assert len(draw(TASKS["phop"], 32, 1)[0].symbols) == 256


@pytest.mark.parametrize("level", [2, 4, 8])
def test_the_graph_without_the_root_tells_nothing(level: int) -> None:
    """First, last, smaller, more often named and larger in-degree are all right half the time."""
    right: Counter[str] = Counter()
    problems = draw(TASKS["prosqa"], level, 800)
    for problem in problems:
        graph, first, second = problem.symbols[:-4], *problem.symbols[-2:]
        ends = graph[1::3]
        guesses = {
            "first": first,
            "smaller": min(first, second),
            "named": first if graph.count(first) > graph.count(second) else second,
            "entered": first if ends.count(first) > ends.count(second) else second,
        }
        right.update(name for name, guess in guesses.items() if guess == problem.answer)
    for name in ("first", "smaller", "named", "entered"):
        assert right[name] / len(problems) == pytest.approx(0.5, abs=4 * 0.5 / 800**0.5)


def test_the_reference_size_of_graphs() -> None:
    problems = draw(TASKS["prosqa"], 4, 50)
    graphs = [problem.question.split(" ? ")[0].split(" | ") for problem in problems]
    assert {len(set(graph)) for graph in graphs} == {36}
    sizes = [len({node for edge in graph for node in edge.split()}) for graph in graphs]
    assert max(sizes) == 23 and np.mean(sizes) > 22.5


def test_paths_are_edges_of_the_graph() -> None:
    for problem in draw(TASKS["prosqa"], 5, 20):
        edges = problem.question.split(" ? ")[0].split(" | ")
        assert set(problem.steps) <= set(edges)
        ends = [step.split() for step in problem.steps]
        assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]
        assert ends[0][0] == problem.symbols[-3]


def test_variables_depend_on_no_later_layer() -> None:
    layer = {letter: index for index, letters in enumerate(LAYERS) for letter in letters}
    for problem in draw(TASKS["igsm"], 12, 20):
        for statement in problem.question.split(" ? ")[0].split(" ; "):
            name, *others = [symbol for symbol in statement.split() if "#" in symbol]
            assert all(layer[other[0]] <= layer[name[0]] for other in others)


def test_values_come_after_what_they_depend_on() -> None:
    for problem in draw(TASKS["igsm"], 12, 20):
        statements = problem.question.split(" ? ")[0].split(" ; ")
        defined = dict(statement.split(" = ") for statement in statements)
        known: set[str] = set()
        for name in (step.split()[0] for step in problem.steps):
            assert {symbol for symbol in defined[name].split() if "#" in symbol} <= known
            known.add(name)


@pytest.mark.parametrize("level", [2, 6])
def test_no_answer_is_the_same_for_all_constants(level: int) -> None:
    """Which, when the constants are drawn anew, would favour the answer 0."""
    rng = np.random.default_rng(level)
    for _ in range(300):
        expressions, asked = draw_expressions(rng, level)
        answers = set()
        for _ in range(20):
            values: list[int] = []
            for expression in expressions:
                constant = not expression.operands
                values.append(int(rng.integers(7)) if constant else expression.value(values))
            answers.add(values[asked])
        assert len(answers) > 1


def test_linear_forms_give_each_answer_alike() -> None:
    answers = Counter(problem.answer for problem in draw(TASKS["igsm"], 6, 2100))
    assert len(answers) == 7
    # Chi-square with 6 degrees of freedom exceeds 27.9 once in 10,000.
    assert sum((count - 300) ** 2 / 300 for count in answers.values()) < 27.9
