"""Shards: a `.bin` file of token records beside an `.idx` file that says where documents lie.

`.bin` holds one record a token, row after row without padding; documents of a row are contiguous.
`.idx` holds two NumPy arrays (`.npy` format, no pickle), one after the other: the table of
documents and the table of rows, both in the order of the `.bin`.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import write_atomically

DOCUMENT_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of its first token in the shard
        ("length", "<u4"),
        ("source", "<u2"),  # place of its source among the manifest's sources
        ("level", "<u4"),
        ("trace", "u1"),  # place of its trace mode in `data.roles.TRACES`
    ]
)
# Where a corpus has texts, each document also has the number of its licence and source among its
# text's origins, and its UTF-8 bytes; the pieces of one that was cut share its bytes.
TEXT_DOCUMENT_DTYPE = np.dtype([*DOCUMENT_DTYPE.descr, ("origin", "<u2"), ("bytes", "<u4")])
ROW_DTYPE = np.dtype([("offset", "<u8"), ("loss", "<f8")])  # first token; sum of loss weights


class CorpusError(ValueError):
    """A corpus cannot be read; the message is one line: what is wrong and what to run."""


@dataclass(frozen=True)
class Shard:
    """Contents of a shard: `records` (see :func:`record_dtype`), `documents` and `rows`."""

    records: np.ndarray
    documents: np.ndarray
    rows: np.ndarray


def record_dtype(vocab_size: int) -> np.dtype:
    """Record of one token: its id, its target, the role of the token, weight of the target's loss.

    Ids take two bytes where the vocabulary allows it, else four.
    """
    token = "<u2" if vocab_size <= 1 << 16 else "<u4"
    return np.dtype([("token", token), ("target", token), ("role", "u1"), ("loss", "<f4")])


def shard_stem(split: str, number: int) -> str:
    """Path of a shard inside its corpus, without the ending."""
    return f"{split}/shard-{number:05d}"


def write_shard(folder: Path, stem: str, shard: Shard) -> dict[str, Any]:
    """Write `<stem>.bin` and `<stem>.idx`, each atomically.

    Returns:
        Their manifest entry: file, bytes, sha256, the same of the index, and the counts.

    Raises:
        WriteError: the files cannot be written, for instance because the disk is full.
    """
    index = io.BytesIO()
    np.lib.format.write_array(index, shard.documents, allow_pickle=False)
    np.lib.format.write_array(index, shard.rows, allow_pickle=False)
    return {
        **_write_hashed(folder, f"{stem}.bin", shard.records.tobytes()),
        "index": _write_hashed(folder, f"{stem}.idx", index.getbuffer()),
        "pieces": int(shard.documents.size),
        "rows": int(shard.rows.size),
        "tokens": int(shard.records.size),
    }


def _write_hashed(folder: Path, file: str, content: bytes | memoryview) -> dict[str, Any]:
    write_atomically(folder / file, content)
    return {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_shard(folder: Path, entry: dict[str, Any], checksum: bool) -> None:
    """Compare a shard's two files with their manifest entry.

    Raises:
        CorpusError: one is missing, has another size or, with `checksum`, other content.
    """
    for file in (entry, entry["index"]):
        _check_file(folder / file["file"], file, checksum)


def _check_file(path: Path, entry: dict[str, Any], checksum: bool) -> None:
    remedy = "run `python -m data` with the same settings to make it again"
    if not path.is_file():
        raise CorpusError(f"{path}: the shard is missing; {remedy}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise CorpusError(
            f"{path}: the shard is damaged ({size} bytes, not {entry['bytes']}); {remedy}"
        )
    if checksum and file_sha256(path) != entry["sha256"]:
        raise CorpusError(
            f"{path}: the shard is damaged (its checksum is not the manifest's); "
            f"delete it and {remedy}"
        )


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_records(path: Path) -> np.ndarray:
    """The bytes of a `.bin` file, mapped into memory."""
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The document table and the row table of an `.idx` file.

    Raises:
        CorpusError: the file is not such an index.
    """
    try:
        with open(path, "rb") as file:
            documents = np.lib.format.read_array(file, allow_pickle=False)
            rows = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: the index cannot be read ({error})") from error
    if documents.dtype not in (DOCUMENT_DTYPE, TEXT_DOCUMENT_DTYPE) or rows.dtype != ROW_DTYPE:
        raise CorpusError(f"{path}: the index is of another format; make the corpus again")
    return documents, rows
