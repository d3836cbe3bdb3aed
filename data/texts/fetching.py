"""Fetching: a dataset of the hub streamed once into compressed JSON lines that are ours to keep.

The folder of a dataset holds parts, `part-00000.jsonl.gz` and so on, each written whole or not at
all, and `fetch.json`, which says what the parts are and whether they are all. A fetch that was
interrupted goes on behind its last part. Training never reads a live stream.
"""

import gzip
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..lock import locked
from .recipes import Recipe

STATE = "fetch.json"
_PART_RECORDS = 10_000
_PART_BYTES = 64 << 20  # before compression: what a part takes of memory while it is gathered

Show = Callable[[int], None]
"""Hears how many records are there so far."""


class FetchError(ValueError):
    """A dataset couldn't be fetched; one line with the reason and what would do instead."""


@dataclass
class Fetched:
    """What a folder holds.

    Attributes:
        hub: the dataset's id, or the folder it was read from.
        split: which of its splits.
        limit: records asked for; None is all.
        complete: whether all that was asked for is there.
        ended: subsets that were read to their end.
        parts: file, subset, records, bytes and sha256 of each part.
    """

    hub: str
    split: str
    limit: int | None = None
    complete: bool = False
    ended: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def records(self, subset: str | None = None) -> int:
        """Records of one subset, or of all."""
        wanted = [part for part in self.parts if subset in (None, part["subset"])]
        return sum(part["records"] for part in wanted)


def fetch(
    recipe: Recipe,
    folder: Path,
    hub: str | None = None,
    limit: int | None = None,
    show: Show = lambda records: None,
) -> Fetched:
    """Stream a dataset into a folder, or go on with what an earlier call has left there.

    Args:
        recipe: which dataset, and which of its columns are kept.
        folder: where its parts lie.
        hub: another id on the hub, or a local folder with the same columns.
        limit: so many records at most.
        show: hears of progress.

    Raises:
        FetchError: it can't be reached, the stream broke, or the folder holds another dataset.
        data.atomic.WriteError: a part can't be written.
    """
    source = hub or recipe.hub
    with locked(folder, progress=True):
        state = _resumed(folder, source, recipe.split)
        state.limit, state.complete = limit, False
        for subset in _subsets(recipe, source):
            _fetch_subset(recipe, folder, state, subset, show)
        state.complete = True
        _write_state(folder, state)
    return state


def read_fetched(folder: Path) -> Fetched | None:
    """What a folder holds by its `fetch.json`; None where there is none that can be read."""
    try:
        return Fetched(**json.loads((folder / STATE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _subsets(recipe: Recipe, source: str) -> tuple[str, ...]:
    """The configurations to read one after the other; a local folder has but its files."""
    return ("",) if Path(source).is_dir() else recipe.subsets or ("",)


def _resumed(folder: Path, source: str, split: str) -> Fetched:
    """The state of the folder, without parts that are not as it says."""
    state = read_fetched(folder) or Fetched(source, split)
    if (state.hub, state.split) != (source, split):
        raise FetchError(
            f"{folder} holds {state.split} of {state.hub}, not {split} of {source}: choose another"
            " folder with to=FOLDER, or delete this one"
        )
    whole = 0
    while whole < len(state.parts) and _is_whole(folder, state.parts[whole]):
        whole += 1
    lost = {part["subset"] for part in state.parts[whole:]}
    state.parts = state.parts[:whole]
    state.ended = [subset for subset in state.ended if subset not in lost]
    kept = {part["file"] for part in state.parts}
    for path in folder.glob("part-*"):
        if path.name not in kept:
            path.unlink()
    return state


def _is_whole(folder: Path, part: Mapping[str, Any]) -> bool:
    path = folder / part["file"]
    if not path.is_file() or path.stat().st_size != part["bytes"]:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == part["sha256"]


def _fetch_subset(recipe: Recipe, folder: Path, state: Fetched, subset: str, show: Show) -> None:
    show(state.records())
    room = None if state.limit is None else state.limit - state.records()
    if subset in state.ended or (room is not None and room <= 0):
        return
    taken, before = 0, state.records()
    columns = {column.split(".")[0] for column in recipe.fields.values()}
    rows = _limited(_rows(recipe, state, subset), room)
    for lines in _parts({key: row[key] for key in row if key in columns} for row in rows):
        taken += len(lines)
        _write_part(folder, state, subset, lines)
        show(before + taken)
    if room is None or taken < room:
        state.ended.append(subset)
        _write_state(folder, state)


def _limited(rows: Iterator[dict[str, Any]], room: int | None) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        yield row
        if number == room:
            return


def _rows(recipe: Recipe, state: Fetched, subset: str) -> Iterator[dict[str, Any]]:
    """The rows behind those that are there; whatever the stream raises becomes one line."""
    load_dataset = _loader(recipe)
    try:
        stream = load_dataset(state.hub, subset or None, split=state.split, streaming=True)
        yield from stream.skip(state.records(subset))
    except Exception as error:
        raise FetchError(_reason(recipe, state, subset, error)) from error


def _loader(recipe: Recipe) -> Callable[..., Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise FetchError(
            f"fetching needs the package datasets: pip install -e '.[corpora]'; {_remedy(recipe)}"
        ) from None
    # Every retry would be a line; the reason is said once, at the end.
    for name in ("huggingface_hub", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return load_dataset


def _reason(recipe: Recipe, state: Fetched, subset: str, error: Exception) -> str:
    what = f"{state.hub}{f' ({subset})' if subset else ''}, split {state.split}"
    why = " ".join(str(error).split())[:200] or type(error).__name__
    if have := state.records():
        return (
            f"{what}: the stream broke after {have:,} records ({why}); the same command goes on"
            " from there"
        )
    return f"{what}: can't be fetched ({why}); {_remedy(recipe)}"


def _remedy(recipe: Recipe) -> str:
    """The local file that would do."""
    return (
        f"a local file with the fields {', '.join(recipe.columns)} would do:"
        f" data.sources.NAME.text.recipe={recipe.name}"
        f" data.sources.NAME.text.files=[{recipe.name}/{recipe.split}.jsonl]"
    )


def _parts(rows: Iterable[dict[str, Any]]) -> Iterator[list[bytes]]:
    """Rows as JSON lines, as many together as make a part."""
    lines: list[bytes] = []
    size = 0
    for row in rows:
        lines.append(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
        size += len(lines[-1])
        if len(lines) >= _PART_RECORDS or size >= _PART_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _write_part(folder: Path, state: Fetched, subset: str, lines: list[bytes]) -> None:
    """Write a part, then the state that counts it."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as file:
        file.writelines(lines)
    data = content.getvalue()
    entry = {
        "file": f"part-{len(state.parts):05d}.jsonl.gz",
        "subset": subset,
        "records": len(lines),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomically(folder / entry["file"], data)
    state.parts.append(entry)
    _write_state(folder, state)


def _write_state(folder: Path, state: Fetched) -> None:
    text = json.dumps(asdict(state), indent=1)
    write_atomically(folder / STATE, f"{text}\n".encode())
