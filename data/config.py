"""What a corpus is made of: its sources (a task in one trace mode), their shares, its size."""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .document import LossWeights
from .split import problem_at, splittable
from .task_list import find_task
from .tasks.task import TRACES
from .tokenizer import Tokenizer, TokenizerConfig, tokenizer_from_config

MIN_CONTEXT = 16
_SIZES = {
    "context": MIN_CONTEXT,
    "seed": 0,
    "num_documents": 1,
    "num_validation_documents": 0,
    "documents_per_shard": 1,
    "workers": 0,
}


@dataclass
class SourceConfig:
    """Documents of one task in one trace mode.

    `weight` is the source's share of the documents, relative to the other sources. `levels` are
    drawn uniformly; an entry that stands there twice is drawn twice as often. `dense` puts a
    target at every symbol of the question (trace `none`, tasks with labels).
    """

    task: str = ""
    trace: str = "none"
    levels: list[int] = field(default_factory=list)
    weight: float = 1.0
    dense: bool = False

    def validate(self, key: str) -> None:
        """Refuse what cannot be made; `key` is where this source stands, `data.sources.<name>`.

        Raises:
            ValueError: one line with the key, its value and what is allowed.
        """
        self._validate_task(f"{key}.task")
        if self.trace not in TRACES:
            _refuse(f"{key}.trace", self.trace, f"one of {_listed(TRACES)}")
        self._validate_levels(f"{key}.levels")
        if not (_is_number(self.weight) and self.weight > 0):
            _refuse(f"{key}.weight", self.weight, "a finite number above 0; or remove the source")
        if self.dense and self.trace != "none":
            _refuse(f"{key}.dense", True, f"false with trace={self.trace}: only `none` has labels")
        if self.dense and self._labels() is None:
            _refuse(f"{key}.dense", True, f"false: task {self.task} has no label at every symbol")

    def _validate_task(self, key: str) -> None:
        try:
            find_task(self.task)
        except ValueError as error:
            raise ValueError(f"{key}={self.task!r} is not possible; {error}") from None

    def _validate_levels(self, key: str) -> None:
        task = find_task(self.task)
        trained, beyond = _listed(task.levels), _listed(task.beyond)
        allowed = f"{task.lowest} to {task.highest} (trained on {trained}, beyond {beyond})"
        if not self.levels:
            _refuse(key, self.levels, f"levels of task {self.task}, {allowed}")
        for level in self.levels:
            try:
                task.check_level(level)
            except ValueError:
                _refuse(key, level, f"levels of task {self.task}, {allowed}")

    def _labels(self) -> tuple[str, ...] | None:
        return problem_at(self.task, self.levels[0], "train", 0, 0).labels

    @property
    def train_only_levels(self) -> list[int]:
        """Levels with too few problems to keep some of them out of training."""
        return sorted({level for level in self.levels if not splittable(self.task, level)})


@dataclass
class DataConfig:
    """One corpus.

    `name`, `root`, `workers` and `verify` say where it lies and how it is made and read; all the
    rest determines its bytes. `workers=0` takes all cores. `verify` compares every shard with its
    checksum when the corpus is opened.
    """

    name: str = "corpus"
    context: int = 128
    seed: int = 0
    num_documents: int = 20_000
    num_validation_documents: int = 512
    documents_per_shard: int = 20_000
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    root: str = "corpora"
    workers: int = 0
    verify: bool = True

    def validate(self) -> None:
        """Refuse what cannot be made, before any work.

        Raises:
            ValueError: one line with the key, its value and what is allowed.
        """
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            _refuse("data.name", self.name, "a folder name of letters, digits, `.`, `_` and `-`")
        for key, minimum in _SIZES.items():
            value: Any = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                _refuse(f"data.{key}", value, f"a whole number of at least {minimum}")
        try:
            self.tokenizer.validate()
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
        self._validate_loss()
        if not self.sources:
            _refuse(
                "data.sources", {}, "at least one source, as in data.sources.direct.task=parity"
            )
        for name, source in self.named_sources():
            source.validate(f"data.sources.{name}")
        self._validate_root()

    def named_sources(self) -> list[tuple[str, SourceConfig]]:
        """Sources in their canonical order, by name; a source's id is its place here."""
        return sorted(self.sources.items())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all sources, each once."""
        return tuple(sorted({source.task for source in self.sources.values()}))

    def build_tokenizer(self) -> Tokenizer:
        """The tokenizer that the corpus is written with."""
        return tokenizer_from_config(self.tokenizer, self.tasks)

    def _validate_loss(self) -> None:
        weights = vars(self.loss)
        for role, weight in weights.items():
            if not (_is_number(weight) and weight >= 0):
                _refuse(f"data.loss.{role}", weight, "a finite number of at least 0")
        if not any(weights.values()):
            _refuse("data.loss", weights, "at least one weight above 0")

    def _validate_root(self) -> None:
        folder = Path(self.root)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            _refuse("data.root", self.root, f"a folder that can be written; {folder} can't")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _refuse(key: str, value: Any, allowed: str) -> NoReturn:
    raise ValueError(f"{key}={value!r} is not possible; allowed: {allowed}")
