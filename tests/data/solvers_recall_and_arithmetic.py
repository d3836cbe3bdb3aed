"""Independent solvers of the recall and arithmetic tasks: from the question's text alone."""

from functools import cache, partial, reduce
from itertools import groupby, product

import numpy as np


def solve_noisy_recall(question: str, level: int) -> str:
    stream, queries = (part.split() for part in question.split("?"))
    assert len(stream) == 4 * level
    content = [symbol for symbol in stream if symbol.startswith("e")]
    content = [symbol for symbol in content if len(symbol) > 1]
    assert len(content) == 2 * level and sorted(queries) == sorted(content[::2])
    return " ".join(content[content.index(query) + 1] for query in queries)


def solve_fuzzy_recall(question: str, level: int) -> str:
    """A pair is a run of letters up to h, then a run of letters from i."""
    stream, queries = question.split(" ? ")
    runs = ["".join(run) for _, run in groupby(stream.split(), key=lambda letter: letter < "i")]
    table = dict(zip(runs[::2], runs[1::2], strict=True))
    assert len(table) == len(runs) // 2 == level
    asked = queries.replace(" ", "").split("|")
    assert sorted(asked) == sorted(table) and max(map(len, runs)) <= 3
    return " | ".join(" ".join(table[query]) for query in asked)


def solve_changing_recall(question: str, level: int) -> str:
    """The last place where the key stands before the question mark."""
    stream, queries = (part.split() for part in question.split("?"))
    keys, values = stream[::2], stream[1::2]
    assert len(values) == len(set(values)) == 2 * level == 2 * len(set(keys))
    assert sorted(queries) == sorted(set(keys))
    return " ".join(
        values[max(i for i, key in enumerate(keys) if key == query)] for query in queries
    )


def solve_var_assign(question: str, level: int) -> str:
    statements, symbol = question.split(" ? ")
    copies = dict(statement.split(" = ") for statement in statements.split(" ; "))
    assert len(copies) == 3 * (level + 1)
    hops = -1
    while not symbol.isdigit():
        symbol, hops = copies[symbol], hops + 1
    assert hops == level
    return symbol


def solve_mano(question: str, level: int) -> str:
    """From right to left with a stack, modulo 23 only at the end."""
    stack: list[int] = []
    for symbol in reversed(question.split()):
        if symbol.startswith("e"):
            assert int(symbol[1:]) < 23
            stack.append(int(symbol[1:]))
        else:
            left, right = stack.pop(), stack.pop()
            stack.append({"+": left + right, "-": left - right, "*": left * right}[symbol])
    (value,) = stack
    assert sum(symbol in "+-*" for symbol in question.split()) == level
    return f"e{value % 23}"


def solve_multiplication(question: str, level: int) -> str:
    first, second = (factor.replace(" ", "") for factor in question.split("*"))
    assert len(first) == len(second) == level and "0" not in (first[0], second[0])
    return " ".join(str(int(first) * int(second)))


def solve_mixed_chain(question: str, level: int, modulus: int = 7) -> str:
    """In whole numbers of any size, reduced only at the end."""
    first, *symbols = question.split()
    moves = list(zip(symbols[::2], map(int, symbols[1::2]), strict=True))
    assert len(moves) == level
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    value = reduce(lambda value, move: operations[move[0]](value, move[1]), moves, int(first))
    return str(value % modulus)


@cache
def all_signs(count: int) -> np.ndarray:
    """[2^count, count], every choice of signs, plus before minus."""
    return np.array(list(product((1, -1), repeat=count)))


def solve_mnns(question: str, level: int) -> str:
    """All signs tried: the first that fit."""
    shown, target = question.replace(" ", "").split("?")
    numbers = np.array(shown.split(","), dtype=int)
    assert len(numbers) == level and numbers.min() >= 10 and numbers.max() <= 99
    signs = all_signs(level)
    first = np.flatnonzero(signs @ numbers == int(target))[0]
    return " ".join("+" if sign > 0 else "-" for sign in signs[first])


def solve_small_program(question: str, level: int) -> str:
    """A machine with a program counter, a loop being one jump back for each further round."""
    text, asked = question.split(" ? ")
    start, tokens = text.split()[:6], text.split()[6:]
    registers = dict(zip(start[::2], map(int, start[1::2]), strict=True))
    place = steps = remaining = body = 0
    while place < len(tokens):
        token = tokens[place]
        if token == "#":
            remaining, body = int(tokens[place + 1]), place + 3
            place += 3
        elif token == ")":
            remaining -= 1
            place = body if remaining else place + 1
        elif token == ";":
            place += 1
        else:
            end = next(i for i in range(place, len(tokens) + 1) if tokens[i : i + 1] in ENDS)
            run_instruction(tokens[place:end], registers)
            place, steps = end, steps + 1
    assert steps == level
    return str(registers[asked])


ENDS = ([";"], [")"], [])


def run_instruction(tokens: list[str], registers: dict[str, int]) -> None:
    def value(symbol: str) -> int:
        return int(symbol) if symbol.isdigit() else registers[symbol]

    if ":" in tokens:
        if not value(tokens[0]) < value(tokens[2]):
            return
        tokens = tokens[4:]
    target, expression = tokens[0], tokens[2:]
    result = value(expression[0])
    if len(expression) == 3:
        other = value(expression[2])
        result = {"+": result + other, "-": result - other, "*": result * other}[expression[1]]
    registers[target] = result % 10


SOLVERS = {
    "noisy_recall": solve_noisy_recall,
    "fuzzy_recall": solve_fuzzy_recall,
    "changing_recall": solve_changing_recall,
    "var_assign": solve_var_assign,
    "mano": solve_mano,
    "multiplication": solve_multiplication,
    "mixed_chain": solve_mixed_chain,
    "mixed_chain_small": partial(solve_mixed_chain, modulus=3),
    "mnns": solve_mnns,
    "small_program": solve_small_program,
}
