"""What a corpus is made of: its sources (a task in one trace mode), their shares, its size."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .document import LossWeights
from .source_config import SourceConfig, is_number, listed, refuse
from .texts.config import TextConfig
from .tokenizer import Tokenizer, TokenizerConfig, tokenizer_from_config

MIN_CONTEXT = 16
WEIGH_BY = ("problems", "tokens")
_SIZES = {
    "context": MIN_CONTEXT,
    "seed": 0,
    "num_documents": 1,
    "num_validation_documents": 0,
    "documents_per_shard": 1,
    "workers": 0,
}


@dataclass
class DataConfig:
    """One corpus.

    `weigh_by` says what the sources' weights are shares of, documents (`problems`) or `tokens`.
    `temperature` flattens them (above 1) or sharpens them (below 1): a source's share is its weight
    to the power of 1 / temperature. `name`, `root`, `workers` and `verify` say where it lies
    and how it is made and read; all the rest determines its bytes. `workers=0` takes all cores.
    `verify` compares every shard with its checksum when the corpus is opened.
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
    weigh_by: str = "problems"
    temperature: float = 1.0
    root: str = "corpora"
    workers: int = 0
    verify: bool = True

    def validate(self) -> None:
        """Refuse what cannot be made, before any work.

        Raises:
            ValueError: one line with the key, its value and what is allowed.
        """
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            refuse("data.name", self.name, "a folder name of letters, digits, `.`, `_` and `-`")
        for key, minimum in _SIZES.items():
            value: Any = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                refuse(f"data.{key}", value, f"a whole number of at least {minimum}")
        try:
            self.tokenizer.validate()
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
        self._validate_loss()
        if not self.sources:
            refuse("data.sources", {}, "at least one source, as in data.sources.direct.task=parity")
        for name, source in self.named_sources():
            source.validate(f"data.sources.{name}")
        self._validate_mixture()
        self._validate_root()

    def _validate_mixture(self) -> None:
        if self.weigh_by not in WEIGH_BY:
            refuse("data.weigh_by", self.weigh_by, f"one of {listed(WEIGH_BY)}")
        if not (is_number(self.temperature) and self.temperature > 0):
            refuse(
                "data.temperature", self.temperature, "a finite number above 0; 1 changes nothing"
            )
        untils = {step.until for source in self.sources.values() for step in source.schedule}
        for start in (0.0, *sorted(untils - {1.0})):
            if not any(source.at(start)[1] > 0 for source in self.sources.values()):
                allowed = "a weight above 0 for at least one source at every time"
                refuse("data.sources.*.schedule", f"no source from {start:g} on", allowed)

    def named_sources(self) -> list[tuple[str, SourceConfig]]:
        """Sources in their canonical order, by name; a source's id is its place here."""
        return sorted(self.sources.items())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all sources, each once."""
        return tuple(sorted({source.task for source in self.sources.values() if source.task}))

    @property
    def texts(self) -> dict[str, TextConfig]:
        """The texts among the sources, by the name of their source."""
        return {name: source.text for name, source in self.named_sources() if source.text}

    def build_tokenizer(self) -> Tokenizer:
        """The tokenizer that the corpus is written with."""
        return tokenizer_from_config(self.tokenizer, self.tasks)

    def _validate_loss(self) -> None:
        weights = vars(self.loss)
        for role, weight in weights.items():
            if not (is_number(weight) and weight >= 0):
                refuse(f"data.loss.{role}", weight, "a finite number of at least 0")
        if not any(w for role, w in weights.items() if role != "text" or self.texts):
            refuse("data.loss", weights, "at least one weight above 0")

    def _validate_root(self) -> None:
        folder = Path(self.root)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            refuse("data.root", self.root, f"a folder that can be written; {folder} can't")
