"""The documents of a shard: drawn, encoded and packed, each a function of its number alone."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import DataConfig, SourceConfig
from .document import EncodedDocument, encode_document
from .packing import pack, piece_lengths, row_contents
from .pool import Tick
from .shards import DOCUMENT_DTYPE, ROW_DTYPE, Shard, record_dtype
from .split import problem_at
from .tasks.task import TRACES
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Drawable:
    """A source as one split sees it: its id, name and settings, and the levels it may draw."""

    number: int
    name: str
    config: SourceConfig
    levels: list[int]


@dataclass(frozen=True)
class Document:
    """An encoded document, the source that it belongs to, and its level."""

    source: Drawable
    level: int
    encoded: EncodedDocument


def drawable_sources(config: DataConfig, split: str) -> list[Drawable]:
    """Sources that give documents to a split: outside `train`, only their splittable levels."""
    sources = []
    for number, (name, source) in enumerate(config.named_sources()):
        hidden = set() if split == "train" else set(source.train_only_levels)
        if levels := [level for level in source.levels if level not in hidden]:
            sources.append(Drawable(number, name, source, levels))
    return sources


def drawn(
    sources: list[Drawable], split: str, seed: int, numbers: range
) -> list[tuple[Drawable, int]]:
    """Source and level of documents, by their number in the split.

    Document i takes block i of a Philox stream that is keyed by (seed, split), so that it doesn't
    matter in which shard, or after which other document, it is drawn.
    """
    key = hashlib.blake2b(f"pauca corpus {seed} {split}".encode(), digest_size=16).digest()
    stream = np.random.Philox(key=np.frombuffer(key, dtype="<u8"), counter=numbers.start)
    uniform = (stream.random_raw(4 * len(numbers)).reshape(-1, 4)[:, :2] >> 11) * 2.0**-53
    shares = np.cumsum([source.config.weight for source in sources])
    choices = np.searchsorted(shares[:-1] / shares[-1], uniform[:, 0], side="right")
    picked = [sources[choice] for choice in choices]
    return [
        (source, source.levels[int(place * len(source.levels))])
        for source, place in zip(picked, uniform[:, 1], strict=True)
    ]


def documents(
    config: DataConfig, tokenizer: Tokenizer, split: str, numbers: range
) -> Iterator[Document]:
    """The documents of a split with these numbers, each made alone from its number.

    Raises:
        ValueError: the tokenizer cannot write a source; the line names it.
    """
    picks = drawn(drawable_sources(config, split), split, config.seed, numbers)
    for number, (source, level) in zip(numbers, picks, strict=True):
        yield encoded(config, tokenizer, split, source, level, number)


def encoded(
    config: DataConfig, tokenizer: Tokenizer, split: str, source: Drawable, level: int, number: int
) -> Document:
    """One document of a source."""
    problem = problem_at(source.config.task, level, split, config.seed, number)
    try:
        document = encode_document(
            problem, source.config.trace, tokenizer, config.loss, source.config.dense
        )
    except ValueError as error:
        raise ValueError(f"data.sources.{source.name}: {error}") from error
    return Document(source, level, document)


def build_shard(
    config: DataConfig, vocab_size: int, shard_documents: list[Document]
) -> tuple[Shard, dict[str, Any]]:
    """Pack documents into a shard, and count them.

    Returns:
        The shard, and its counts: `split_documents` (longer than a row, hence cut) and `sources`.
    """
    tokens = _joined_records(shard_documents, record_dtype(vocab_size))
    table, cut = _piece_table(shard_documents, config.context)
    order, firsts = row_contents(pack(table["length"], config.context))
    records = tokens[_token_order(table[order])]
    packed = table[order]
    packed["offset"] = _starts(packed["length"])
    rows = np.empty(firsts.size, ROW_DTYPE)
    rows["offset"] = packed["offset"][firsts]
    rows["loss"] = np.add.reduceat(
        records["loss"].astype(np.float64), rows["offset"].astype(np.int64)
    )
    counts = {"split_documents": cut, "sources": _counts(shard_documents)}
    return Shard(records, packed, rows), counts


def _joined_records(shard_documents: list[Document], dtype: np.dtype) -> np.ndarray:
    encodings = [document.encoded for document in shard_documents]
    records = np.empty(sum(len(encoding.tokens) for encoding in encodings), dtype)
    # Assigning casts the encoder's wider integers; the size of the vocabulary chose the dtype.
    records["token"] = np.concatenate([encoding.tokens for encoding in encodings])
    records["target"] = np.concatenate([encoding.targets for encoding in encodings])
    records["role"] = np.concatenate([encoding.roles for encoding in encodings])
    records["loss"] = np.concatenate([encoding.loss for encoding in encodings])
    return records


def _piece_table(shard_documents: list[Document], context: int) -> tuple[np.ndarray, int]:
    """The document table before packing, an entry a piece, and how many documents were cut."""
    entries, offset, cut = [], 0, 0
    for document in shard_documents:
        pieces = piece_lengths(len(document.encoded.tokens), context)
        cut += len(pieces) > 1
        trace = TRACES.index(document.source.config.trace)
        for length in pieces:
            entries.append((offset, length, document.source.number, document.level, trace))
            offset += length
    return np.array(entries, dtype=DOCUMENT_DTYPE), cut


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _token_order(table: np.ndarray) -> np.ndarray:
    """For each token in packed order, its place before packing."""
    shift = table["offset"].astype(np.int64) - _starts(table["length"])
    return np.repeat(shift, table["length"]) + np.arange(table["length"].sum(dtype=np.int64))


def _counts(shard_documents: list[Document]) -> dict[str, dict[str, Any]]:
    """Documents, tokens, sum of loss weights and documents per level, of each source."""
    counts: dict[str, dict[str, Any]] = {}
    for document in shard_documents:
        count = counts.setdefault(
            document.source.name, {"documents": 0, "tokens": 0, "loss": 0.0, "levels": {}}
        )
        count["documents"] += 1
        count["tokens"] += len(document.encoded.tokens)
        count["loss"] += float(document.encoded.loss.sum(dtype=np.float64))
        level = str(document.level)
        count["levels"][level] = count["levels"].get(level, 0) + 1
    return counts


def make_shard(
    config: DataConfig, tokenizer: Tokenizer, split: str, numbers: range, tick: Tick
) -> tuple[Shard, dict[str, Any]]:
    """Draw, encode and pack documents; `tick` hears of each one, to show progress."""
    made = []
    for document in documents(config, tokenizer, split, numbers):
        made.append(document)
        tick()
    return build_shard(config, tokenizer.vocab_size, made)
