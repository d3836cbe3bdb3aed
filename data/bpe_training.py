"""The BPE of a corpus: trained once on a sample of its documents, and kept beside the corpora."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from .atomic import write_atomically
from .bpe import SAMPLED_DOCUMENTS, trained_bpe
from .config import DataConfig
from .document import fragments
from .generate import Texts, problem_of
from .manifest import GENERATOR_VERSION, source_definition
from .mixture import Drawable
from .split import problem_at
from .tokenizer import TokenizerConfig


def bpe_file(config: DataConfig, texts: Texts) -> Path:
    """The tokenizer.json of a corpus of kind bpe; it is trained if it isn't there yet."""
    path = Path(config.root) / "tokenizers" / f"{_name(config, texts)}.json"
    if not path.is_file():
        trained = trained_bpe(
            sampled_texts(config, texts), config.tokenizer.vocab_size, config.tasks
        )
        write_atomically(path, trained.to_str().encode())
    return path


def _name(config: DataConfig, texts: Texts) -> str:
    """By all that the sample depends on."""
    sources = {
        name: source_definition(source, texts.get(name)) for name, source in config.named_sources()
    }
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=config.tokenizer.vocab_size)
    parts = [GENERATOR_VERSION, SAMPLED_DOCUMENTS, config.seed, asdict(tokenizer), sources]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def sampled_texts(config: DataConfig, texts: Texts) -> Iterator[str]:
    """Training documents of every source and level, in pieces, in an order that never changes."""
    for number, (name, source) in enumerate(config.named_sources()):
        drawable = Drawable(number, name, source, source.all_levels, 1.0)
        if name in texts:
            yield from _of_text(drawable, texts)
            continue
        for level in source.all_levels:
            for index in range(SAMPLED_DOCUMENTS):
                problem = problem_at(source.task, level, "train", config.seed, index)
                yield from (each.text for each in fragments(problem, source.trace))


def _of_text(source: Drawable, texts: Texts) -> Iterator[str]:
    text = texts[source.name]
    size = text.num_records("train")
    count = min(SAMPLED_DOCUMENTS, size)
    for index in [i * size // count for i in range(count)]:
        record = text.read("train", index)
        problem = problem_of(record, source)
        if problem is None:
            yield record.text or ""
        else:
            yield from (each.text for each in fragments(problem, source.config.trace))
