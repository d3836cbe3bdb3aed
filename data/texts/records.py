"""A record: one document of a text, whatever file and columns it came from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """Plain text, or a question with its answer and the steps that lead there.

    Attributes:
        text: the plain text; None where there is a question.
        question, answer: None where there is plain text.
        steps: the lines of the trace; empty where there is none.
        level: how hard, 0 where nothing says.
        licence, source: of this record.
        place: file and line, for messages.
    """

    text: str | None = None
    question: str | None = None
    steps: tuple[str, ...] = ()
    answer: str | None = None
    level: int = 0
    licence: str = "unknown"
    source: str = "unknown"
    place: str = ""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all that is written."""
        parts = (self.text, self.question, *self.steps, self.answer)
        return sum(len(part.encode()) for part in parts if part)

    def content(self) -> str:
        """All but the place, as JSON: what the record is, wherever its file lay."""
        parts = {
            "text": self.text,
            "question": self.question,
            "steps": list(self.steps),
            "answer": self.answer,
            "level": self.level,
            "licence": self.licence,
            "source": self.source,
        }
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))

    def essence(self) -> bytes:
        """What makes two records equal: all their words, whatever their licence and source."""
        parts = [self.text, self.question, list(self.steps), self.answer]
        return json.dumps(parts, ensure_ascii=False).encode()

    def subject(self) -> bytes:
        """What decides the split: the text, or the question, however it is answered."""
        return str(self.text if self.question is None else self.question).encode()


def record_from(content: Mapping[str, Any], place: str) -> Record:
    """The record of `Record.content`."""
    return Record(**{**content, "steps": tuple(content["steps"])}, place=place)


@dataclass(frozen=True)
class Bad:
    """What can't be used: why, where, and how it begins."""

    kind: str
    place: str
    excerpt: str = ""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.place}: {self.kind}" + (f" ({self.excerpt})" if self.excerpt else "")


def excerpt_of(value: object, length: int = 60) -> str:
    """The beginning of a value, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
