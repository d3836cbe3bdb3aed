"""What a text is: its files, what in them is what, and what to do with what can't be used."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from .recipes import FIELDS, RECIPES, Recipe

FORMATS = ("auto", "jsonl", "parquet", "text")
DOCUMENTS = ("file", "paragraph", "line")
ON_BAD = ("refuse", "skip")
TEST_SET_NAMES = ("gsm8k", "math", "math_500")
TOO_LONG = ("cut", "skip", "refuse")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}


@dataclass
class TextConfig:
    """Files of text, or of questions with answers.

    Attributes:
        recipe: a dataset whose fields are known; its files are those that `python -m data.fetch`
            has left, unless `files` names others.
        files: paths, with `*` for many; each may end in .gz.
        format: jsonl, parquet or text; auto goes by the ending.
        fields: which column is the text, or the question, trace and answer; also level, licence and
            source. Points lead into objects, as in `meta.url`. A column of the same name needs no
            mention.
        licence: of records that don't name their own.
        origin: where records come from that don't name their own source.
        document: what is one document of plain text: a file, a paragraph (between empty lines) or a
            line.
        on_bad: refuse stops at the first record that can't be used, skip counts such records.
        max_bytes: the longest record; null is any.
        too_long: what happens to longer ones. cut makes several documents of a plain text.
        deduplicate: keep only the first of equal records.
        held_out: test sets, such as gsm8k; a record that shares 13 words in a row with one of their
            questions is left out and counted.
    """

    recipe: str | None = None
    files: list[str] = field(default_factory=list)
    format: str = "auto"
    fields: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    origin: str = ""
    document: str = "paragraph"
    on_bad: str = "refuse"
    max_bytes: int | None = None
    too_long: str = "cut"
    deduplicate: bool = True
    held_out: list[str] = field(default_factory=list)

    def validate(self, key: str) -> None:
        """Refuse what can't be read; `key` is where this text stands.

        Raises:
            ValueError: one line with the key, its value and what is allowed.
        """
        choices = {
            "format": FORMATS,
            "document": DOCUMENTS,
            "on_bad": ON_BAD,
            "too_long": TOO_LONG,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                _refuse(f"{key}.{name}", getattr(self, name), f"one of {', '.join(allowed)}")
        if self.recipe is not None and self.recipe not in RECIPES:
            _refuse(f"{key}.recipe", self.recipe, f"one of {', '.join(RECIPES)}, or null")
        if self.recipe is None and not self.files:
            _refuse(f"{key}.files", [], "at least one path, as in [texts/*.jsonl], or a recipe")
        for name in self.fields:
            if name not in FIELDS:
                _refuse(f"{key}.fields.{name}", self.fields[name], f"keys {', '.join(FIELDS)}")
        for name in self.held_out:
            if name not in TEST_SET_NAMES:
                _refuse(f"{key}.held_out", name, f"some of {', '.join(TEST_SET_NAMES)}")
        if self.max_bytes is not None and self.max_bytes < 1:
            _refuse(f"{key}.max_bytes", self.max_bytes, "at least 1, or null")

    def known(self) -> Recipe | None:
        """The recipe, if there is one."""
        return None if self.recipe is None else RECIPES[self.recipe]

    def format_of(self, path: Path) -> str:
        """How a file is to be read; ValueError where its ending doesn't tell."""
        if self.format != "auto":
            return self.format
        suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(
                f"{path}: the ending {suffix or '(none)'} doesn't tell the format: set"
                " format=jsonl|parquet|text"
            )
        return SUFFIXES[suffix]


def _refuse(key: str, value: object, allowed: str) -> NoReturn:
    raise ValueError(f"{key}={value!r} is not possible; allowed: {allowed}")
