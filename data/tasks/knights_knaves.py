"""Who tells the truth: deduction from statements about speakers (Smullyan's knights and knaves)."""

from functools import cache
from itertools import combinations, product

import numpy as np

from .guessing import measured_chance
from .task import Problem, Task

NAMES = "ABCDEFGHIJ"
KNIGHT, KNAVE = "K", "N"


class KnightsKnaves(Task):
    """`A : B N | B : A = C | C : A # B ?`: the role of each person in order, `K` or `N`.

    Knights (K) say what is true, knaves (N) what is false. The level is the number of persons; each
    says one thing: that another is a knight or a knave, or that two others are of the same kind
    (`=`) or not (`#`). Statements are drawn until exactly one assignment of roles fits them all,
    which is found by trying all.

    The trace writes each person's role and whether the statement is then true (`+`) or false (`-`),
    `A K + B N`, and then all roles (`full`), the roles alone (`short`, the minimal trace), or first
    the search, person by person, with `#` at roles that contradict a statement (`verbose`).
    """

    name = "knights_knaves"
    capability = "deduction"
    levels = (4, 5, 6, 7)
    beyond = (8, 10)
    lowest, highest = 3, len(NAMES)

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Roles, then statements that fit them, until they fit no others."""
        while True:
            statements, roles = draw_statements(rng, level)
            if (fitting(level, statements)).sum() == 1:
                break
        said = [written(statement) for statement in statements]
        question = " | ".join(f"{NAMES[i]} : {text}" for i, text in enumerate(said)) + " ?"
        signs = [KNIGHT if role else KNAVE for role in roles]
        steps = [
            f"{NAMES[i]} {sign} {'+' if role else '-'} {text}"
            for i, (sign, role, text) in enumerate(zip(signs, roles, said, strict=True))
        ]
        answer = " ".join(signs)
        return Problem(self.name, level, question, answer, (*steps, f"= {answer}"), level)

    def short(self, problem: Problem) -> tuple[str, ...]:
        """The roles alone."""
        return tuple(problem.answer.split())

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """The search: roles are tried in order, knight first, until a statement fails."""
        statements = [read(said) for said in problem.question[:-2].split(" | ")]
        rows: list[str] = []
        search([], statements, rows)
        return (*rows, "|", *problem.steps)

    def chance(self, level: int) -> float:
        """Of the most frequent roles; measured."""
        return measured_chance(self, level)

    def num_problems(self, level: int) -> int | None:
        """Counted for three and four persons; five have 20 statements each, 3.2 million in all."""
        return num_unique(level) if level <= 4 else None

    def symbols(self) -> frozenset[str]:
        """Names and roles, letters that the vocabulary has."""
        return frozenset((*NAMES, KNIGHT, KNAVE))


Statement = tuple[int, int, int]
"""`(a, b, c)`: a xor b is c; b is -1 for none; c is 1 for a knight, or for different kinds."""


def draw_statements(rng: np.random.Generator, level: int) -> tuple[list[Statement], list[bool]]:
    """A statement of each person, true of the roles exactly if the person is a knight."""
    roles = (rng.random(level) < 0.5).tolist()
    draws = rng.random((level, 3)).tolist()
    statements = []
    for person, (kind, first, second) in enumerate(draws):
        others = [other for other in range(level) if other != person]
        a = others.pop(int(first * len(others)))
        b = others[int(second * len(others))] if kind < 0.5 else -1
        if 0 <= b < a:
            a, b = b, a
        value = roles[a] ^ (roles[b] if b >= 0 else False)
        statements.append((a, b, int(value == roles[person])))
    return statements, roles


def fitting(level: int, statements: list[Statement]) -> np.ndarray:
    """[2 ** level] bool: which assignments of roles fit all statements."""
    roles = all_roles(level)
    fits = np.ones(len(roles), dtype=bool)
    for person, (a, b, value) in enumerate(statements):
        said = roles[:, a] ^ roles[:, b] if b >= 0 else roles[:, a]
        fits &= (said == value) == roles[:, person]
    return fits


@cache
def all_roles(level: int) -> np.ndarray:
    """[2 ** level, level] every assignment of roles, 1 for a knight."""
    return (np.arange(2**level)[:, None] >> np.arange(level)) & 1


@cache
def num_unique(level: int) -> int:
    """How many choices of statements fit exactly one assignment of roles."""
    persons = range(level)
    choices = []
    for person in persons:
        others = [other for other in persons if other != person]
        single = [(a, -1, value) for a in others for value in (0, 1)]
        choices.append(single + [(*pair, v) for pair in combinations(others, 2) for v in (0, 1)])
    return sum(int(fitting(level, list(said)).sum() == 1) for said in product(*choices))


def written(statement: Statement) -> str:
    """What the person says."""
    a, b, value = statement
    if b < 0:
        return f"{NAMES[a]} {KNIGHT if value else KNAVE}"
    return f"{NAMES[a]} {'#' if value else '='} {NAMES[b]}"


def read(said: str) -> Statement:
    """The statement that `written` wrote, after its speaker."""
    first, *rest = said.split()[2:]
    if len(rest) == 1:
        return NAMES.index(first), -1, int(rest[0] == KNIGHT)
    return NAMES.index(first), NAMES.index(rest[1]), int(rest[0] == "#")


def search(roles: list[int], statements: list[Statement], rows: list[str]) -> bool:
    """Assign roles in order; write each try, with `#` where a statement fails."""
    if len(roles) == len(statements):
        return True
    for role in (1, 0):
        tried = [*roles, role]
        fails = any(contradicts(person, said, tried) for person, said in enumerate(statements))
        mark = " #" if fails else ""
        rows.append(f"{NAMES[len(roles)]} {KNIGHT if role else KNAVE}{mark}")
        if not fails and search(tried, statements, rows):
            return True
    return False


def contradicts(person: int, statement: Statement, roles: list[int]) -> bool:
    """Whether a statement, all of whose persons have roles, doesn't fit its speaker's."""
    a, b, value = statement
    if max(person, a, b) >= len(roles):
        return False
    said = roles[a] ^ roles[b] if b >= 0 else roles[a]
    return (said == value) != bool(roles[person])
