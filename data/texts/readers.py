"""Files of text read record by record, never whole; what can't be read is named, not raised."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from .records import Bad, excerpt_of

_PARQUET_ROWS = 4_096
_BROKEN = "the file is cut off or damaged (an interrupted download?)"
_LONGEST = 64 << 20  # bytes of a line or a plain text: more is never held in memory


@dataclass(frozen=True)
class Raw:
    """A record as its file has it."""

    place: str
    values: Mapping[str, Any]


Found = Iterator[Raw | Bad]
Advance = Callable[[int], None]
"""Hears how many bytes of a file have been read so far."""


def read_file(path: Path, kind: str, document: str, advance: Advance) -> Found:
    """The records of a file, in order; a file without any gives a `Bad` that says so.

    Args:
        path: the file; plain text and JSON lines may be compressed (.gz).
        kind: jsonl, parquet or text.
        document: what is a document of plain text: file, paragraph or line.
        advance: hears of progress.
    """
    empty = True
    for found in _found(path, kind, document, advance):
        empty = False
        yield found
    if empty:
        yield Bad("empty file", path.name)


def _found(path: Path, kind: str, document: str, advance: Advance) -> Found:
    if kind == "parquet":
        return _parquet(path, advance)
    lines = _lines(path, advance)
    if kind == "jsonl":
        return _json_lines(lines)
    if document == "line":
        return _text_lines(lines)
    return _blocks(lines, whole=document == "file")


@dataclass(frozen=True)
class _Line:
    """One line's bytes and its place; `bad` says why there is no more of it, or of the file."""

    place: str
    content: bytes
    bad: Bad | None = None


def _lines(path: Path, advance: Advance) -> Iterator[_Line]:
    number = 0
    with open(path, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            while content := stream.readline(_LONGEST):
                number += 1
                yield _line(f"{path.name}:{number}", content)
                advance(raw.tell())
                while len(content) == _LONGEST and not content.endswith(b"\n"):
                    content = stream.readline(_LONGEST)  # the rest of the same line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            place = f"{path.name}:{number + 1}"
            yield _Line(place, b"", Bad(_BROKEN, place, excerpt_of(error)))


def _line(place: str, content: bytes) -> _Line:
    if len(content) < _LONGEST:
        return _Line(place, content)
    return _Line(place, b"", _too_long(place, excerpt_of(content[:200])))


def _too_long(place: str, begins: str) -> Bad:
    return Bad("too long", place, f"more than {_LONGEST:,} bytes; {begins}")


def _decoded(line: _Line) -> str | Bad:
    if line.bad is not None:
        return line.bad
    try:
        return line.content.decode("utf-8-sig" if line.place.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        near = line.content[max(0, error.start - 20) : error.end + 20].decode(errors="replace")
        return Bad("invalid UTF-8", line.place, f"at byte {error.start}: {excerpt_of(near)}")


def _json_lines(lines: Iterator[_Line]) -> Found:
    for line in lines:
        text = _decoded(line)
        if isinstance(text, Bad):
            yield text
        elif text.strip():
            yield _parsed(text, line.place)


def _parsed(text: str, place: str) -> Raw | Bad:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        end = "" if text.endswith("\n") else " (the file ends here: an interrupted download?)"
        return Bad("not JSON", place, excerpt_of(text) + end)
    if not isinstance(values, dict):
        return Bad("no JSON object", place, excerpt_of(text))
    return Raw(place, values)


def _text_lines(lines: Iterator[_Line]) -> Found:
    for line in lines:
        text = _decoded(line)
        if isinstance(text, Bad):
            yield text
        elif text.strip():
            yield Raw(line.place, {"text": text.rstrip("\r\n")})


def _blocks(lines: Iterator[_Line], whole: bool) -> Found:
    """Paragraphs, or the whole file; a bad line takes its block with it."""
    block: list[str] = []
    start, bad, size = "", None, 0
    for line in lines:
        text = _decoded(line)
        start = start or line.place
        size += len(line.content)
        if isinstance(text, Bad):
            bad = bad or text
        elif size > _LONGEST:
            bad, block = bad or _too_long(start, excerpt_of("".join(block[:1]))), []
        elif text.strip() or whole:
            block.append(text)
        if isinstance(text, str) and not text.strip() and not whole:
            yield from _block(block, start, bad)
            block, start, bad, size = [], "", None, 0
    yield from _block(block, start, bad)


def _block(block: list[str], start: str, bad: Bad | None) -> Found:
    if bad is not None:
        yield bad
    elif text := "".join(block).strip("\r\n"):
        yield Raw(start, {"text": text})


def _parquet(path: Path, advance: Advance) -> Found:
    size = path.stat().st_size
    try:
        scan = pl.scan_parquet(path)
        height = int(scan.select(pl.len()).collect().item())
        for first in range(0, height, _PARQUET_ROWS):
            rows = scan.slice(first, _PARQUET_ROWS).collect()
            for index, values in enumerate(rows.iter_rows(named=True), first):
                yield Raw(f"{path.name}, row {index}", values)
            advance(size * min(first + _PARQUET_ROWS, height) // height)
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        yield Bad(_BROKEN, path.name, excerpt_of(error))
