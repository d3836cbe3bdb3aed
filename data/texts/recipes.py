"""Datasets whose columns are known: where they come from, what is what in them, their licence."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .answers import gradable, number_of
from .boxed import FieldError, boxed

FIELDS = ("text", "question", "trace", "answer", "level", "licence", "source")

# Of MATH, as the hub and the published test sets name them.
SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A dataset of the Hugging Face hub.

    Attributes:
        name: as configs call it, and the tag of its documents.
        hub: owner/name on the hub.
        subsets: configurations of the dataset, read one after the other; none is its only one.
        split: what to take.
        licence: as its card states it.
        fields: which column is what.
        extract: makes question, trace, answer and level from a record's values, where a column
            isn't one of them as it is.
        check: whether an answer is one that answers can be compared with; None accepts any.
    """

    name: str
    hub: str
    licence: str
    fields: Mapping[str, str]
    subsets: tuple[str, ...] = ()
    split: str = "train"
    extract: Callable[[Values], dict[str, Any]] | None = None
    check: Callable[[str], bool] | None = None

    @property
    def source(self) -> str:
        """Where it lies, as an address."""
        return f"https://huggingface.co/datasets/{self.hub}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a local file must have."""
        return tuple(self.fields.values())


_CALCULATOR = re.compile(r"<<[^<>]*>>")
_LEVEL = re.compile(r"\d+")


def gsm8k(values: Values) -> dict[str, Any]:
    """GSM8K (arXiv 2110.14168): steps a line, `<<calculations>>` among them, answer after `####`.

    The level is the number of steps.
    """
    solution, mark, answer = str(values["answer"]).rpartition("####")
    if not mark:
        raise FieldError("the answer has no `####`")
    lines = _CALCULATOR.sub("", solution).splitlines()
    steps = [line.strip() for line in lines if line.strip()]
    return {"trace": steps, "answer": answer.strip().replace(",", ""), "level": len(steps)}


def math(values: Values) -> dict[str, Any]:
    """MATH (arXiv 2103.03874): the answer is the last `\\boxed{...}` of the solution."""
    solution = str(values["trace"])
    level = _LEVEL.search(str(values.get("level", "")))
    return {"answer": boxed(solution), "level": int(level[0]) if level else 0}


_THOUGHT = re.compile(
    r"(?:<\|begin_of_thought\|>|<think>)(.*?)(?:<\|end_of_thought\|>|</think>)", re.DOTALL
)
_SOLUTION = re.compile(r"<\|begin_of_solution\|>(.*?)<\|end_of_solution\|>", re.DOTALL)


def openthoughts(values: Values) -> dict[str, Any]:
    """OpenThoughts (arXiv 2506.04178): a conversation whose reply marks thought and solution."""
    turns = values["trace"]
    try:
        said = [str(turn["value"] if "value" in turn else turn["content"]) for turn in turns]
    except (TypeError, KeyError, IndexError):
        raise FieldError("conversations is no list of turns with `value` or `content`") from None
    if len(said) < 2:
        raise FieldError("the conversation has no reply")
    thought = _THOUGHT.search(said[1])
    if thought is None:
        raise FieldError("the reply marks no thought")
    solution = _SOLUTION.search(said[1])
    answer = solution[1] if solution else said[1][thought.end() :]
    return {"question": said[0].strip(), "trace": thought[1].strip(), "answer": answer.strip()}


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "gsm8k",
            "openai/gsm8k",
            "MIT",
            {"question": "question", "answer": "answer"},
            subsets=("main",),
            extract=gsm8k,
            check=lambda answer: number_of(answer) is not None,
        ),
        Recipe(
            "math",
            "EleutherAI/hendrycks_math",
            "MIT",
            {"question": "problem", "trace": "solution", "level": "level"},
            subsets=SUBJECTS,
            extract=math,
            check=gradable,
        ),
        Recipe("openwebmath", "open-web-math/open-web-math", "ODC-By-1.0", {"text": "text"}),
        Recipe(
            "finemath",
            "HuggingFaceTB/finemath",
            "ODC-By-1.0",
            {"text": "text"},
            subsets=("finemath-4plus",),
        ),
        Recipe(
            "openthoughts",
            "open-thoughts/OpenThoughts3-1.2M",
            "Apache-2.0",
            {"trace": "conversations"},
            extract=openthoughts,
        ),
    )
}
