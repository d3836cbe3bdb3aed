"""The store of a staged text: records a line each, and arrays that find them."""

import hashlib
import json
import mmap
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from ..atomic import TEMPORARY_SUFFIX, WriteError
from ..shards import CorpusError
from .records import Record, record_from

VALIDATION_PERCENT = 5
SPLITS = ("train", "validation")
_RECORDS, _INDEX = "records.jsonl", "index.npz"


@dataclass(frozen=True)
class Kept:
    """What a store holds when it is finished."""

    hash: str
    records: int
    duplicates: int
    bytes: int
    splits: dict[str, int]
    origins: list[int]


class RecordWriter:
    """Writes records one by one; it holds 35 bytes of each until it is finished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beside = folder / f"{_RECORDS}{TEMPORARY_SUFFIX}"
        self._starts, self._essences = array("Q", [0]), array("Q")
        self._sizes, self._percents, self._origins = array("Q"), array("B"), array("H")
        self._file: BinaryIO | None = None

    def __enter__(self) -> "RecordWriter":
        try:
            self._file = open(self._beside, "wb")
        except OSError as error:
            raise WriteError(f"{self._beside}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
        self._beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"{self._beside}: cannot be written ({error.strerror})") from error

    @property
    def appended(self) -> int:
        """Records so far."""
        return len(self._percents)

    def append(self, record: Record, origin: int) -> None:
        """Write one record; `origin` is the number of its licence and source."""
        assert self._file is not None
        line = f"{record.content()}\t{json.dumps(record.place)}\n".encode()
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self._sizes.append(record.num_bytes)
        digest = blake2b(record.essence(), digest_size=16, person=b"text").digest()
        self._essences.frombytes(digest)
        self._percents.append(_percent(record))
        self._origins.append(origin)

    def finish(self, deduplicate: bool) -> Kept:
        """Decide what is kept and in which split it is, and put all in place."""
        assert self._file is not None
        self._file.flush()
        essences = np.frombuffer(self._essences, "<u8").reshape(-1, 2)
        kept = _first_of_each(essences) if deduplicate else np.arange(len(essences))
        held_out = np.frombuffer(self._percents, np.uint8)[kept] < VALIDATION_PERCENT
        splits = {"train": kept[~held_out], "validation": kept[held_out]}
        starts = np.frombuffer(self._starts, "<u8")
        digest = self._digest(starts, splits)
        with open(self._folder / f"{_INDEX}{TEMPORARY_SUFFIX}", "wb") as file:
            np.savez(file, starts=starts, train=splits["train"], validation=splits["validation"])
        (self._folder / f"{_INDEX}{TEMPORARY_SUFFIX}").replace(self._folder / _INDEX)
        self._beside.replace(self._folder / _RECORDS)
        sizes, origins = np.frombuffer(self._sizes, "<u8"), np.frombuffer(self._origins, "<u2")
        return Kept(
            digest,
            kept.size,
            len(essences) - kept.size,
            int(sizes[kept].sum()),
            {split: indices.size for split, indices in splits.items()},
            np.bincount(origins[kept], minlength=int(origins.max()) + 1).tolist(),
        )

    def _digest(self, starts: np.ndarray, splits: dict[str, np.ndarray]) -> str:
        """Of the records of each split, in order; the places they came from don't count."""
        digest = hashlib.sha256()
        with open(self._beside, "rb") as file:
            for split, indices in splits.items():
                digest.update(f"{split} {indices.size}\n".encode())
                for index in indices.tolist():
                    file.seek(int(starts[index]))
                    line = file.read(int(starts[index + 1] - starts[index]))
                    digest.update(line.rpartition(b"\t")[0] + b"\n")
        return digest.hexdigest()


def _percent(record: Record) -> int:
    """0 to 99, by what the record is about: answers to one question are never in two splits."""
    digest = blake2b(record.subject(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "little") % 100


def _first_of_each(essences: np.ndarray) -> np.ndarray:
    """The place of the first record of each essence, in order."""
    pairs = np.ascontiguousarray(essences).view([("high", "<u8"), ("low", "<u8")]).ravel()
    return np.sort(np.unique(pairs, return_index=True)[1])


class RecordStore:
    """Reads any record of a finished store."""

    def __init__(self, folder: Path) -> None:
        """Open a finished store; CorpusError where its files aren't what was written."""
        try:
            # NumPy leaves a file open that it can't read; this one is closed in any case.
            with open(folder / _INDEX, "rb") as file, np.load(file, allow_pickle=False) as index:
                self._starts = index["starts"]
                self._splits = {split: index[split] for split in SPLITS}
            with open(folder / _RECORDS, "rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            whole = len(self._content) == int(self._starts[-1])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            whole = False
        if not whole:
            raise CorpusError(
                f"{folder}: the staged text is damaged; delete the folder and run `python -m data`"
                " with the same settings to read it again"
            )

    def split(self, name: str) -> np.ndarray:
        """The records of a split, by their number; the test split of a text is empty."""
        return self._splits.get(name, np.empty(0, np.int64))

    def read(self, number: int) -> Record:
        """One record."""
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        content, _, place = self._content[start:end].rpartition(b"\t")
        return record_from(json.loads(content), json.loads(place))
