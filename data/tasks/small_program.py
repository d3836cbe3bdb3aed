"""Running a small program: state tracking with branches and loops.

Three registers hold digits, and all arithmetic is modulo 10. After their first values, as `a 3 b 0
c 7`, the program's instructions follow, each after a `;`:

    a = a + b       or -; the second operand is another register or a digit
    a = a * 7       only by 3, 7 or 9
    a = 4           only outside of loops
    b < c : ...     a condition before an instruction: it is done only where that holds
    # 3 ( ... )     a loop: its one to three instructions are done 2 to 4 times over

and `? a` asks for a register. Each instruction of a register permutes its values, or puts a fresh
uniform digit there, whatever the other registers hold. So the final state is uniform, too.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .igsm import below
from .task import Problem, Task

REGISTERS = "abc"
BASE = 10
UNITS = "379"
LONGEST_BODY, FEWEST_LOOPS, MOST_LOOPS = 3, 2, 4
DRAWS_PER_INSTRUCTION = 12
LOOP = re.compile(r"# (\d) \( (.*?) \)")


class Executed(NamedTuple):
    """One executed instruction, what it read, whether it was done, and its register's value."""

    instruction: str
    read: str
    done: bool
    register: str
    value: str


class SmallProgram(Task):
    """The value of a register after a small program; the level is how many steps it runs.

    Each instruction counts as a step each time that it is reached, whether its condition holds or
    not. The last instruction is a sum or difference of two registers and its register is asked for.
    Every step sets a register that the last one reads, itself or by way of later steps.

    The trace writes the register of each step with its value after it, `a = 7` (`full`), the same
    without the `=` (`short`, also the minimal trace), or each instruction and what it reads, as in
    `b < c : a = a + b > 2 < 5 : 3 + 2 = 5`, with `#` where the condition fails (`verbose`).
    """

    name = "small_program"
    capability = "state tracking"
    levels = (2, 4, 8, 16)
    beyond = (24, 32)
    lowest = 2

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """First values and a program of exactly that many steps, then run it."""
        uniform = iter(rng.random(DRAWS_PER_INSTRUCTION * level + len(REGISTERS)).tolist())
        start = " ".join(f"{register} {below(uniform, BASE)}" for register in REGISTERS)
        program, asked = draw_program(uniform, level)
        question = f"{' ; '.join((start, *program))} ? {asked}"
        steps = tuple(f"{step.register} = {step.value}" for step in executed(question))
        return Problem(
            self.name, level, question, steps[-1].split()[-1], steps, minimal_trace=2 * level
        )

    def short(self, problem: Problem) -> tuple[str, ...]:
        """Register and value of each step."""
        return tuple(step.replace(" =", "") for step in problem.steps)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each instruction, what it reads, and what comes of it."""
        return tuple(
            f"{step.instruction} > {step.read} {'=' if step.done else '#'} {step.value}"
            for step in executed(problem.question)
        )

    def chance(self, level: int) -> float:
        """One in ten: the final state is uniform."""
        return 1 / BASE

    def num_problems(self, level: int) -> None:
        """Over a million at every level: two instructions and the first values see to that."""
        return None

    def symbols(self) -> frozenset[str]:
        """None beyond digits, letters and operators."""
        return frozenset()


def draw_program(uniform: Iterator[float], steps: int) -> tuple[list[str], str]:
    """Instructions and loops that run that many steps together, and the register to ask for.

    Drawn from the last to the first, so that each sets a register that a later one reads.
    """
    asked = draw_register(uniform, "")
    program = [f"{asked} = {asked} {'+-'[below(uniform, 2)]} {draw_register(uniform, asked)}"]
    needed, steps = {asked, program[0][-1]}, steps - 1
    while steps > 0:
        body = 1 + below(uniform, LONGEST_BODY)
        loops = FEWEST_LOOPS + below(uniform, MOST_LOOPS - FEWEST_LOOPS + 1)
        if next(uniform) < 0.5 and body * loops <= steps:
            lines = [draw_instruction(uniform, needed, in_loop=True) for _ in range(body)]
            program.append(f"# {loops} ( {' ; '.join(lines[::-1])} )")
            steps -= body * loops
        else:
            program.append(draw_instruction(uniform, needed, in_loop=False))
            steps -= 1
    return program[::-1], asked


def draw_instruction(uniform: Iterator[float], needed: set[str], in_loop: bool) -> str:
    """A change of a needed register, three in ten under a condition; or, outside of loops, a digit.

    `needed` becomes what is needed before the instruction. A loop only adds to it, so what its last
    round needs, the rounds before need too.
    """
    register = sorted(needed)[below(uniform, len(needed))]
    kind = next(uniform)
    if kind < 0.1 and not in_loop and len(needed) > 1:
        needed.remove(register)
        return f"{register} = {below(uniform, BASE)}"
    instruction = draw_update(uniform, register)
    if kind > 0.7:
        left = draw_register(uniform, register)
        instruction = f"{left} < {draw_operand(uniform, register + left)} : {instruction}"
    needed.update(symbol for symbol in instruction.split() if symbol in REGISTERS)
    return instruction


def draw_update(uniform: Iterator[float], register: str) -> str:
    """The register, changed by an operand that it doesn't depend on."""
    kind = next(uniform)
    if kind < 0.25:
        return f"{register} = {register} * {UNITS[below(uniform, len(UNITS))]}"
    operator = "+" if kind < 0.625 else "-"
    return f"{register} = {register} {operator} {draw_operand(uniform, register)}"


def draw_operand(uniform: Iterator[float], without: str) -> str:
    """A register other than those, or a digit from 1 to 9 one time in four."""
    if next(uniform) < 1 / 4:
        return str(1 + below(uniform, BASE - 1))
    return draw_register(uniform, without)


def draw_register(uniform: Iterator[float], without: str) -> str:
    """A uniform register other than those."""
    allowed = [register for register in REGISTERS if register not in without]
    return allowed[below(uniform, len(allowed))]


def executed(question: str) -> Iterator[Executed]:
    """The steps of the program in a question, loops written out."""
    start, *program = question.split(" ? ")[0].split(" ; ", 1)
    symbols = start.split()
    values = dict(zip(symbols[::2], symbols[1::2], strict=True))
    unrolled = LOOP.sub(lambda loop: " ; ".join([loop[2]] * int(loop[1])), program[0])
    for instruction in unrolled.split(" ; "):
        *condition, update = instruction.split(" : ")
        register, expression = update.split(" = ")
        read = " : ".join(inserted(part, values) for part in (*condition, expression))
        done = not condition or holds(inserted(condition[0], values))
        if done:
            values[register] = result(inserted(expression, values))
        yield Executed(instruction, read, done, register, values[register])


def inserted(text: str, values: dict[str, str]) -> str:
    """The text with the registers' values put in."""
    return " ".join(values.get(symbol, symbol) for symbol in text.split())


def holds(condition: str) -> bool:
    """Whether `2 < 5`."""
    left, right = condition.split(" < ")
    return left < right


def result(expression: str) -> str:
    """The digit that `3 + 4` or `4` gives modulo 10."""
    left, *rest = expression.split()
    if not rest:
        return left
    operator, first, second = rest[0], int(left), int(rest[1])
    if operator == "*":
        return str(first * second % BASE)
    return str((first + second if operator == "+" else first - second) % BASE)
