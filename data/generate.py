"""The documents of a shard: drawn, encoded and packed, each a function of its number alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import DataConfig
from .document import EncodedDocument, encode_document, encode_text
from .mixture import Drawable, Part, Pick, picks, record_indices
from .packing import pack, piece_lengths, row_contents
from .pool import Tick
from .roles import BEGINS_STEP
from .shards import DOCUMENT_DTYPE, ROW_DTYPE, TEXT_DOCUMENT_DTYPE, Shard, record_dtype
from .split import problem_at
from .tasks.task import TRACES, Problem
from .texts.records import Record
from .texts.staging import StagedText
from .tokenizer import Tokenizer

_TOKENS_AT_ONCE = 1 << 22
_ROWS_AT_ONCE = 1 << 12

Texts = Mapping[str, StagedText]
"""The staged texts of a corpus, by the name of their source."""


@dataclass(frozen=True)
class Document:
    """An encoded document, the source that it belongs to, and its level.

    Of a text it also knows its `origin`, the number of its licence and source among the text's, and
    its UTF-8 bytes.
    """

    source: Drawable
    level: int
    encoded: EncodedDocument
    origin: int = 0
    num_bytes: int = 0


def documents(
    config: DataConfig, tokenizer: Tokenizer, split: str, part: Part, texts: Texts
) -> Iterator[Document]:
    """The documents of one shard of a split, each made alone from its number.

    Raises:
        ValueError: the tokenizer cannot write a source; the line names it.
    """
    chosen = picks(part, split, config.seed)
    records = _records_of(config, split, chosen, texts)
    for pick in chosen:
        if pick.source.name in texts:
            record = texts[pick.source.name].read(split, records[pick.number])
            yield encoded_record(config, tokenizer, pick.source, record, texts[pick.source.name])
        else:
            yield encoded(config, tokenizer, split, pick.source, pick.level, pick.number)


def _records_of(config: DataConfig, split: str, chosen: list[Pick], texts: Texts) -> dict[int, int]:
    """Which record of its text each document is, by the document's number."""
    records: dict[int, int] = {}
    for name, text in texts.items():
        mine = [pick for pick in chosen if pick.source.name == name]
        ordinals = np.array([pick.ordinal for pick in mine], dtype=np.int64)
        indices = record_indices(name, config.seed, ordinals, text.num_records(split))
        records |= {pick.number: index for pick, index in zip(mine, indices.tolist(), strict=True)}
    return records


def encoded(
    config: DataConfig, tokenizer: Tokenizer, split: str, source: Drawable, level: int, number: int
) -> Document:
    """One document of a task."""
    problem = problem_at(source.config.task, level, split, config.seed, number)
    try:
        document = encode_document(
            problem, source.config.trace, tokenizer, config.loss, source.config.dense
        )
    except ValueError as error:
        raise ValueError(f"data.sources.{source.name}: {error}") from error
    return Document(source, level, document)


def encoded_record(
    config: DataConfig, tokenizer: Tokenizer, source: Drawable, record: Record, text: StagedText
) -> Document:
    """One document of a text: plain, or a question with its answer."""
    problem = problem_of(record, source)
    try:
        if problem is None:
            document = encode_text(record.text or "", tokenizer, config.loss)
        else:
            document = encode_document(problem, source.config.trace, tokenizer, config.loss)
    except ValueError as error:
        raise ValueError(f"data.sources.{source.name}: {record.place}: {error}") from error
    return Document(source, record.level, document, text.origin_of(record), record.num_bytes)


def problem_of(record: Record, source: Drawable) -> Problem | None:
    """A record with a question as a problem, announced by its recipe or else its source's name."""
    if record.question is None or record.answer is None:
        return None
    assert source.config.text is not None
    name = source.config.text.recipe or source.name
    length = len(" ".join(record.steps).split())
    return Problem(
        name, record.level, record.question, record.answer, record.steps, length, is_text=True
    )


def build_shard(
    config: DataConfig, vocab_size: int, shard_documents: list[Document]
) -> tuple[Shard, dict[str, Any]]:
    """Pack documents into a shard, and count them.

    Returns:
        The shard, and its counts: `split_documents` (longer than a row, hence cut) and `sources`.
    """
    tokens = _joined_records(shard_documents, record_dtype(vocab_size))
    table, cut = _piece_table(shard_documents, config)
    order, firsts = row_contents(pack(table["length"], config.context))
    records = _reordered(tokens, table[order])
    packed = table[order]
    packed["offset"] = _starts(packed["length"])
    rows = np.empty(firsts.size, ROW_DTYPE)
    rows["offset"] = packed["offset"][firsts]
    rows["loss"] = _row_sums(records["loss"], rows["offset"].astype(np.int64))
    counts = {"split_documents": cut, "sources": _counts(shard_documents)}
    return Shard(records, packed, rows), counts


def _joined_records(shard_documents: list[Document], dtype: np.dtype) -> np.ndarray:
    encodings = [document.encoded for document in shard_documents]
    records = np.empty(sum(len(encoding.tokens) for encoding in encodings), dtype)
    # Assigning casts the encoder's wider integers; the size of the vocabulary chose the dtype.
    records["token"] = np.concatenate([encoding.tokens for encoding in encodings])
    records["target"] = np.concatenate([encoding.targets for encoding in encodings])
    roles = [encoding.roles | encoding.begins * BEGINS_STEP for encoding in encodings]
    records["role"] = np.concatenate(roles)
    records["loss"] = np.concatenate([encoding.loss for encoding in encodings])
    return records


def _piece_table(shard_documents: list[Document], config: DataConfig) -> tuple[np.ndarray, int]:
    """The document table before packing, an entry a piece, and how many documents were cut."""
    entries, offset, cut = [], 0, 0
    for document in shard_documents:
        pieces = piece_lengths(len(document.encoded.tokens), config.context)
        cut += len(pieces) > 1
        source = document.source
        trace = TRACES.index(source.config.trace)
        for length, num_bytes in zip(pieces, _shared(document.num_bytes, pieces), strict=True):
            entry = (offset, length, source.number, document.level, trace)
            entries.append((*entry, document.origin, num_bytes) if config.texts else entry)
            offset += length
    return np.array(entries, dtype=TEXT_DOCUMENT_DTYPE if config.texts else DOCUMENT_DTYPE), cut


def _shared(num_bytes: int, lengths: list[int]) -> list[int]:
    """A document's bytes shared among its pieces, in proportion to their tokens."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.diff(ends * num_bytes // ends[-1], prepend=0).tolist()


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _reordered(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Records in packed order; a few documents at a time, since places are wider than records."""
    records, done = np.empty_like(tokens), 0
    ends = np.cumsum(table["length"], dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(_TOKENS_AT_ONCE, tokens.size, _TOKENS_AT_ONCE))
    for few in np.split(table, cuts + 1):
        shift = few["offset"].astype(np.int64) - _starts(few["length"])
        places = np.repeat(shift, few["length"])
        places += np.arange(places.size)
        records[done : done + places.size] = tokens[places]
        done += places.size
    return records


def _row_sums(losses: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sum of loss weights of each row, in double precision; some rows at a time."""
    sums, ends = np.empty(offsets.size), np.append(offsets[1:], losses.size)
    for first in range(0, offsets.size, _ROWS_AT_ONCE):
        few = offsets[first : first + _ROWS_AT_ONCE]
        span = losses[few[0] : ends[first + few.size - 1]].astype(np.float64)
        sums[first : first + few.size] = np.add.reduceat(span, few - few[0])
    return sums


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
        if document.source.config.text:
            _count_text(count, document)
    return counts


def _count_text(count: dict[str, Any], document: Document) -> None:
    """Count bytes, and documents of each origin."""
    count["bytes"] = count.get("bytes", 0) + document.num_bytes
    origins = count.setdefault("origins", {})
    origins[str(document.origin)] = origins.get(str(document.origin), 0) + 1


def make_shard(
    config: DataConfig, tokenizer: Tokenizer, split: str, part: Part, texts: Texts, tick: Tick
) -> tuple[Shard, dict[str, Any]]:
    """Draw, encode and pack documents; `tick` hears of each one, to show progress."""
    made = []
    for document in documents(config, tokenizer, split, part, texts):
        made.append(document)
        tick()
    return build_shard(config, tokenizer.vocab_size, made)
