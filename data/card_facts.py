"""What a corpus's card says, read off the corpus: lengths, levels, answers, examples, overlaps."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .corpus import Corpus, PackedRows
from .document import prompt_text
from .ngrams import NgramIndex, Overlaps
from .roles import Role
from .split import evaluation_problems, splittable
from .task_list import TASKS, find_task
from .texts.test_sets import TEST_SETS, test_set

LOOKED_AT = 20_000
EXAMPLES = 10
EVALUATION_ITEMS = 500
_ROWS_AT_ONCE = 64


@dataclass
class Sampled:
    """What was seen of a source: lengths in tokens, levels, answers, and some documents."""

    lengths: list[int] = field(default_factory=list)
    levels: Counter[int] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    texts: Counter[str] = field(default_factory=Counter)

    @property
    def repeated(self) -> int:
        """How many of the documents that were looked at are copies of another of them."""
        return sum(self.texts.values()) - len(self.texts)


@dataclass(frozen=True)
class Document:
    """A document, or a piece of one that was cut: its source, level, text, question and answer."""

    source: str
    level: int
    length: int
    text: str
    question: str
    answer: str


@dataclass(frozen=True)
class Facts:
    """All that the card needs beside the manifest."""

    sources: dict[str, Sampled]
    looked_at: int
    overlaps: Overlaps
    compared_with: list[str]


def facts_of(corpus: Corpus, limit: int = LOOKED_AT) -> Facts:
    """Look at up to `limit` training documents, spread over the corpus; 0 is all of them."""
    sampled = {name: Sampled() for name in corpus.source_names}
    index, prompts = evaluation_index(corpus)
    found = Overlaps()
    for number, document in enumerate(documents_of(corpus, limit)):
        _note(sampled[document.source], document)
        asked = " ".join(document.question.split())
        hit = (prompts[asked], asked) if asked in prompts else index.group_of(document.text)
        found.checked += 1
        if hit is not None:
            group, window = hit
            found.found[group] = found.found.get(group, 0) + 1
            if len(found.examples) < 3:
                place = f"document {number} looked at, of source {document.source}"
                found.examples.append((place, group, window))
    return Facts(sampled, found.checked, found, [*index.names, *sorted(set(prompts.values()))])


def _note(sampled: Sampled, document: Document) -> None:
    sampled.lengths.append(document.length)
    sampled.levels[document.level] += 1
    sampled.texts[document.text] += 1
    if document.answer:
        sampled.answers[document.answer] += 1
    if len(sampled.examples) < EXAMPLES and document.text not in sampled.examples:
        sampled.examples.append(document.text)


def documents_of(corpus: Corpus, limit: int) -> Iterator[Document]:
    """Training documents, row by row; where there are more than `limit`, of rows evenly spread."""
    rows = corpus.split("train")
    documents = int(rows.document_lengths.size)
    count = rows.num_rows
    if limit and documents > limit:
        count = max(1, rows.num_rows * limit // documents)
    chosen = np.arange(count) * rows.num_rows // count
    for first in range(0, count, _ROWS_AT_ONCE):
        yield from _read(corpus, rows, chosen[first : first + _ROWS_AT_ONCE])


def _read(corpus: Corpus, rows: PackedRows, indices: np.ndarray) -> Iterator[Document]:
    arrays, names, decode = rows.read(indices), corpus.source_names, corpus.tokenizer.decode
    entries = iter(arrays.document_table)
    for row in range(indices.size):
        for segment in range(int(arrays.segments[row].max()) + 1):
            here = arrays.segments[row] == segment
            tokens, roles = arrays.tokens[row, here], arrays.roles[row, here]
            entry = next(entries)
            yield Document(
                names[int(entry["source"])],
                int(entry["level"]),
                tokens.size,
                decode(tokens.tolist()),
                decode(tokens[roles == Role.QUESTION].tolist()),
                decode(tokens[roles == Role.ANSWER].tolist()).replace("<eos>", "").strip(),
            )


def evaluation_index(corpus: Corpus) -> tuple[NgramIndex, dict[str, str]]:
    """The held-out questions of the test sets that are here, and of the corpus's tasks.

    Questions of test sets are compared by 13 words in a row. Those of tasks are compared whole, as
    prompts: two problems of a task share most of their words without being copies.
    """
    groups: dict[str, list[str]] = {}
    tasks = sorted({s["task"] for s in corpus.manifest["definition"]["sources"].values()} - {""})
    for name in TEST_SETS:
        try:
            task = test_set(name)
            groups[name] = [p.question for level in task.levels for p in task.fixed(level)]
        except ValueError:  # not here
            continue
    return NgramIndex(groups), {prompt: task for task in tasks for prompt in held_out(task)}


def held_out(name: str) -> Iterator[str]:
    """The prompts that evaluation asks by default, in every trace mode."""
    task = find_task(name)
    levels = (*task.levels, *task.beyond) if name in TASKS else task.levels
    for level in levels:
        if not splittable(name, level):
            continue
        count = EVALUATION_ITEMS if name in TASKS else EVALUATION_ITEMS // 10
        for problem in evaluation_problems(name, level, "test", 0, count):
            for trace in task.traces:
                yield " ".join(prompt_text(problem, trace).split())
