"""Everything that a corpus is made from, opened: its texts, its tokenizer, its shards to make."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from .bpe_training import bpe_file
from .config import DataConfig
from .generate import Texts, encoded, encoded_record
from .huggingface_tokenizer import tokenizer_from_path
from .manifest import corpus_definition, json_hash
from .mixture import Drawable, MeanLength, Part, capacity, drawable_sources, parts, phase_documents
from .shards import shard_stem
from .texts.staging import open_staged, stage
from .tokenizer import Tokenizer, TokenizerConfig, tokenizer_from_config

# Of each level of a task, or of a text, where its mean length is needed: the standard error is then
# a few percent even where lengths vary as much as those of web pages.
_SAMPLED_DOCUMENTS = 256


@dataclass(frozen=True)
class Job:
    """One shard to make: a part of a split."""

    config: DataConfig
    folder: Path
    definition_hash: str
    split: str
    shard: int
    part: Part
    phase: int | None
    texts: Mapping[str, Path]
    tokenizer_file: str | None

    @property
    def stem(self) -> str:
        """Path of the shard inside the corpus, without the ending."""
        return shard_stem(self.split, self.shard)

    @property
    def facts(self) -> Path:
        """The file whose presence says that the shard is finished."""
        return self.folder / f"{self.stem}.json"

    def tokenizer(self) -> Tokenizer:
        """The corpus's tokenizer, built once a process."""
        if self.tokenizer_file is not None:
            return file_tokenizer(self.tokenizer_file)
        return built_tokenizer(self.config)

    def open_texts(self) -> Texts:
        """The corpus's texts, opened once a process."""
        return {name: _opened(folder) for name, folder in self.texts.items()}


@dataclass(frozen=True)
class Recipe:
    """A corpus's settings with its texts staged and its tokenizer built."""

    config: DataConfig
    tokenizer: Tokenizer
    texts: Texts
    tokenizer_file: str | None = None

    @cached_property
    def definition_hash(self) -> str:
        """What names the corpus."""
        return json_hash(corpus_definition(self.config, self.tokenizer, self.texts))

    @property
    def folder(self) -> Path:
        """Where the corpus lies or will lie."""
        return Path(self.config.root) / f"{self.config.name}-{self.definition_hash[:12]}"

    def check_encodable(self) -> None:
        """Encode a document of each source and level, so that what can't be written fails at once.

        Raises:
            ValueError: the tokenizer cannot write a source; the line names it.
        """
        for number, (name, source) in enumerate(self.config.named_sources()):
            drawable = Drawable(number, name, source, source.all_levels, 1.0)
            self._sample(drawable, 1)

    def mean_length(self, source: Drawable) -> float:
        """Mean tokens of a source's documents, from a sample that depends on the seed alone."""
        return float(np.mean(self._sample(source, _SAMPLED_DOCUMENTS)))

    def _sample(self, source: Drawable, count: int) -> list[int]:
        """Tokens of the first documents of each level of a task, or of records of a text."""
        if source.name not in self.texts:
            draw = partial(encoded, self.config, self.tokenizer, "train", source)
            return [len(draw(level, i).encoded) for level in source.levels for i in range(count)]
        text = self.texts[source.name]
        size = text.num_records("train")
        count = min(count, size)
        indices = [i * size // count for i in range(count)]
        made = (
            encoded_record(self.config, self.tokenizer, source, text.read("train", i), text)
            for i in indices
        )
        return [len(document.encoded) for document in made]

    def jobs(self) -> list[Job]:
        """The shards of all splits. Without a source that a split may draw from, it has none.

        Raises:
            ValueError: the sources run out before the training documents are complete.
        """
        training = phase_documents(self.config, self.mean_length)
        validation = [range(self.config.num_validation_documents)]
        return [*self._jobs("train", training), *self._jobs("validation", validation)]

    def _jobs(self, split: str, phases: list[range]) -> list[Job]:
        mean_length = self.mean_length if self.config.weigh_by == "tokens" else None
        numbers = [chunk for phase in phases for chunk in self._chunks(phase)]
        sources = [
            self._drawable(split, phase, mean_length) if len(span) else []
            for phase, span in enumerate(phases)
        ]
        made = parts(
            numbers, sources.__getitem__, phases, self._capacities(split), split, self.config.seed
        )
        if split == "train":
            self._check_enough(sum(len(part.numbers) for part in made))
        folders = {name: text.folder for name, text in self.texts.items()}
        where = (self.config, self.folder, self.definition_hash, split)
        return [
            Job(*where, shard, part, self._phase_of(part, phases), folders, self.tokenizer_file)
            for shard, part in enumerate(made)
        ]

    def _chunks(self, phase: range) -> list[range]:
        size = self.config.documents_per_shard
        firsts = range(phase.start, phase.stop, size)
        return [range(first, min(first + size, phase.stop)) for first in firsts]

    def _drawable(self, split: str, phase: int, mean_length: MeanLength | None) -> list[Drawable]:
        found = drawable_sources(self.config, split, phase, mean_length)
        return [
            source
            for source in found
            if source.name not in self.texts or self.texts[source.name].num_records(split)
        ]

    def _capacities(self, split: str) -> dict[str, float]:
        """Documents of each text, whose records are counted, and of each source with a cap."""
        counted = {}
        for name, source in self.config.named_sources():
            text = self.texts.get(name)
            records = None if text is None else text.num_records(split)
            if text is not None or source.max_epochs is not None:
                counted[name] = capacity(source, split, records)
        return counted

    def _check_enough(self, documents: int) -> None:
        if documents < self.config.num_documents:
            raise ValueError(
                f"data.num_documents={self.config.num_documents} is more than the sources give:"
                f" with their max_epochs they are used up after {documents}; lower it, raise a"
                " max_epochs, or add a source"
            )

    def _phase_of(self, part: Part, phases: list[range]) -> int | None:
        if len(phases) == 1:
            return None
        return next(i for i, span in enumerate(phases) if part.numbers.start in span)


def open_recipe(config: DataConfig, progress: bool = True) -> Recipe:
    """Stage the texts of a corpus and build its tokenizer.

    Raises:
        ValueError: a text or the tokenizer can't be read, or the tokenizer can't write the text.
    """
    texts = {
        name: stage(text, Path(config.root), f"data.sources.{name}.text", progress)
        for name, text in config.texts.items()
    }
    for name, text in texts.items():
        if not text.num_records("train"):
            raise ValueError(f"data.sources.{name}.text has no training record: add files")
    file = str(bpe_file(config, texts)) if config.tokenizer.kind == "bpe" else None
    tokenizer = built_tokenizer(config) if file is None else file_tokenizer(file)
    if texts and not tokenizer.keeps_text:
        raise ValueError(
            f"data.tokenizer.path={config.tokenizer.path} doesn't give text back sign by sign (it"
            " may drop spaces or letters it doesn't know): use another, or data.tokenizer.kind=bpe"
        )
    return Recipe(config, tokenizer, texts, file)


def built_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer that the settings name, built once a process."""
    return _built_tokenizer(json.dumps(asdict(config.tokenizer)), config.tasks)


@lru_cache(maxsize=4)
def _built_tokenizer(settings: str, tasks: tuple[str, ...]) -> Tokenizer:
    return tokenizer_from_config(TokenizerConfig(**json.loads(settings)), tasks)


file_tokenizer = lru_cache(maxsize=4)(tokenizer_from_path)
_opened = lru_cache(maxsize=64)(open_staged)
