"""A finished corpus, opened for reading: rows of packed documents as padded arrays."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .manifest import read_manifest
from .order import Phase
from .roles import BEGINS_STEP
from .shards import (
    DOCUMENT_DTYPE,
    CorpusError,
    check_shard,
    map_records,
    read_index,
)
from .tokenizer import Tokenizer, tokenizer_from_spec

# Each mapped shard holds a file descriptor, of which a process may have 1,024 by default.
_MAX_MAPPED_SHARDS = 256
_BLOCK_TOKENS = 1 << 15


@dataclass(frozen=True)
class RowArrays:
    """Rows of documents, each padded at its end to the context: six arrays [rows, context].

    `tokens`, `targets` (int64; the pad id outside documents), `segments` (int64; the document's
    number in its row, -1 outside), `roles` (int64, `data.roles.Role`), `loss` (float32; weight
    of the target, 0 outside) and `begins` (bool; where a written step begins, or what ends the
    trace). `document_table` holds an entry per document, in reading order.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    roles: np.ndarray
    loss: np.ndarray
    begins: np.ndarray
    document_table: np.ndarray = field(default_factory=lambda: np.empty(0, DOCUMENT_DTYPE))

    def take(self, rows: np.ndarray) -> "RowArrays":
        """Some of the rows, without the table of their documents."""
        names = ("tokens", "targets", "segments", "roles", "loss", "begins")
        return RowArrays(**{name: getattr(self, name)[rows] for name in names})

    def documents(self, row: int) -> np.ndarray:
        """What a row holds: `length`, `source` (id), `level` and `trace` (id) of each document.

        Entry k is the document whose tokens have `segments == k` in that row.
        """
        ends = np.cumsum(self.segments.max(axis=1) + 1)
        return self.document_table[ends[row - 1] if row else 0 : ends[row]]


class Corpus:
    """A corpus folder. Make one with `python -m data`; open it with :meth:`open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "Corpus":
        """Open a corpus and check that all its shards are there with their sizes.

        Args:
            path: its folder.
            verify: also compare every shard with its checksum.

        Raises:
            CorpusError: one line that says what is missing or damaged and what to run.
        """
        path = Path(path)
        manifest = read_manifest(path)
        for split in manifest["splits"].values():
            for entry in split["shards"]:
                check_shard(path, entry, checksum=verify)
        return cls(path, manifest)

    @property
    def hash(self) -> str:
        """The manifest's hash: what a checkpoint remembers of its corpus."""
        return self.manifest["hash"]

    @property
    def context(self) -> int:
        """Tokens of a row."""
        return self.manifest["context"]

    @property
    def source_names(self) -> list[str]:
        """Names of the sources, by their id in the document tables."""
        sources = self.manifest["sources"]
        return sorted(sources, key=lambda name: sources[name]["id"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the corpus was written with.

        Raises:
            CorpusError: it cannot be rebuilt as it was.
        """
        tokenizer = tokenizer_from_spec(self.manifest["tokenizer"]["spec"])
        if tokenizer.fingerprint != self.manifest["tokenizer"]["fingerprint"]:
            raise CorpusError(
                f"{self.path}: the tokenizer of this version differs from the corpus's; "
                "make the corpus again with `python -m data`"
            )
        return tokenizer

    def split(self, name: str) -> "PackedRows":
        """The rows of a split.

        Raises:
            CorpusError: there is no such split, or it is empty.
        """
        splits = self.manifest["splits"]
        if name not in splits:
            raise CorpusError(f"{self.path}: no split {name!r}; there are {', '.join(splits)}")
        if not splits[name]["rows"]:
            raise CorpusError(
                f"{self.path}: the split {name!r} is empty; make a corpus with "
                f"data.num_validation_documents above 0 and levels that are not train-only"
            )
        return PackedRows(self, name)


class PackedRows:
    """Random access to the packed rows of one split."""

    def __init__(self, corpus: Corpus, split: str):
        self._corpus, self._split = corpus, split
        self.context = corpus.context
        self._dtype = np.dtype([(name, kind) for name, kind in corpus.manifest["record"]])
        self._blank = np.zeros((), self._dtype)
        self._blank["token"] = self._blank["target"] = corpus.tokenizer.pad_id
        self.paths = [
            corpus.path / entry["file"] for entry in corpus.manifest["splits"][split]["shards"]
        ]
        self._mapped: dict[int, np.ndarray] = {}
        self._load_tables()

    def __reduce__(self) -> tuple[Any, ...]:
        # Data-loading processes map the files themselves instead of receiving their content.
        return _reopened, (self._corpus.path, self._split)

    def _load_tables(self) -> None:
        """Join the shards' tables: where each row lies in its file, and which documents it has."""
        tables = [self._shard_tables(path) for path in self.paths]
        rows = np.concatenate([rows for _, rows, _ in tables])
        self._documents = np.concatenate([documents for documents, _, _ in tables])
        self._lengths = np.concatenate([lengths for _, _, lengths in tables])
        self._losses = rows["loss"]
        self._offsets = rows["offset"].astype(np.int64)
        self._shards = np.repeat(np.arange(len(tables)), [rows.size for _, rows, _ in tables])
        # Documents lie in the order of rows, so a row's are those before its last token.
        ends = np.cumsum(self._lengths)
        places = np.cumsum(self._documents["length"], dtype=np.int64)
        self._first_document = np.concatenate([[0], np.searchsorted(places, ends, "left") + 1])
        starts = places - self._documents["length"]
        rows_of = np.repeat(np.arange(ends.size), np.diff(self._first_document))
        self._document_starts = starts - (ends - self._lengths)[rows_of]

    def _shard_tables(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        documents, rows = read_index(path.with_suffix(".idx"))
        tokens = path.stat().st_size // self._dtype.itemsize
        return documents, rows, np.diff(rows["offset"].astype(np.int64), append=tokens)

    @property
    def phases(self) -> list[Phase]:
        """The phases in which training goes through the rows; one of all, if nothing is scheduled.

        A phase without rows is left out: what follows it, or came before, has its time.
        """
        phases = self._corpus.manifest.get("phases", []) if self._split == "train" else []
        found = [Phase(phase["until"], phase["rows"]) for phase in phases if phase["rows"]]
        return found or [Phase(1.0, self.num_rows)]

    @property
    def pad_id(self) -> int:
        """The token, and target, of what is no document's."""
        return int(self._blank["token"])

    @property
    def dot_id(self) -> int:
        """The token that stands at thoughts' places."""
        return self._corpus.tokenizer.encode(".")[-1]

    def holds(self, sources: np.ndarray) -> np.ndarray:
        """[rows] bool: whether a row holds a document of one of the sources, given by their ids."""
        held = np.isin(self._documents["source"], sources)
        return np.logical_or.reduceat(held, self._first_document[:-1])

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self._lengths.size

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, padding not counted."""
        return int(self._lengths.sum())

    @property
    def document_lengths(self) -> np.ndarray:
        """Tokens of each document of the split, in the order of rows."""
        return self._documents["length"]

    def loss_sum(self, indices: np.ndarray) -> float:
        """Sum of the loss weights of rows: the denominator of their mean loss."""
        return float(self._losses[indices].sum())

    def read(self, indices: np.ndarray) -> RowArrays:
        """Rows by their index, 0 .. num_rows-1, in the order asked for; IndexError for others."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.num_rows):
            raise IndexError(f"rows {indices} are not all in 0 .. {self.num_rows - 1}")
        shape = (indices.size, self.context)
        rows = RowArrays(
            *(np.empty(shape, np.int64) for _ in range(4)),
            loss=np.empty(shape, np.float32),
            begins=np.empty(shape, np.bool_),
            document_table=self._documents[self._documents_of(indices)[1]],
        )
        # Block by block the records stay in the processor's cache between being read and widened.
        height = max(1, _BLOCK_TOKENS // self.context)
        for first in range(0, indices.size, height):
            self._fill(rows, slice(first, first + height), indices[first : first + height])
        return rows

    def _fill(self, rows: RowArrays, place: slice, indices: np.ndarray) -> None:
        """Write the rows of a block of indices into their place."""
        records = self._records(indices)
        rows.tokens[place] = records["token"]
        rows.targets[place] = records["target"]
        np.bitwise_and(records["role"], ~BEGINS_STEP, out=rows.roles[place], casting="safe")
        np.greater_equal(records["role"], BEGINS_STEP, out=rows.begins[place])
        rows.loss[place] = records["loss"]
        self._write_segments(rows.segments[place], indices)

    def _records(self, indices: np.ndarray) -> np.ndarray:
        """Token records [rows, context], blank at the end of each row."""
        size = self._dtype.itemsize
        records = np.empty((indices.size, self.context), self._dtype)
        content = records.view(np.uint8).reshape(indices.size, self.context * size)
        starts = self._offsets[indices] * size
        lengths = self._lengths[indices] * size
        places = zip(self._shards[indices].tolist(), starts.tolist(), lengths.tolist(), strict=True)
        for row, (shard, start, length) in enumerate(places):
            content[row, :length] = self._map(shard)[start : start + length]
            # Blanks go to the ends alone: whole rows of them would cost more than the tokens.
            records[row, length // size :] = self._blank
        return records

    def _write_segments(self, segments: np.ndarray, indices: np.ndarray) -> None:
        """The number in its row of each token's document, -1 outside documents."""
        rows, documents = self._documents_of(indices)
        segments[...] = 0
        segments[rows, self._document_starts[documents]] = 1
        segments[:, 0] = 0
        np.cumsum(segments, axis=1, out=segments)
        for row, length in enumerate(self._lengths[indices].tolist()):
            segments[row, length:] = -1

    def _documents_of(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each document of some rows: the place of its row among them, its number."""
        firsts = self._first_document[indices]
        counts = self._first_document[indices + 1] - firsts
        shift = firsts - (np.cumsum(counts) - counts)
        rows = np.repeat(np.arange(indices.size), counts)
        return rows, np.arange(rows.size) + shift[rows]

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._mapped:
            if len(self._mapped) == _MAX_MAPPED_SHARDS:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[shard] = map_records(self.paths[shard])
        return self._mapped[shard]


def _reopened(path: Path, split: str) -> PackedRows:
    return Corpus.open(path, verify=False).split(split)
