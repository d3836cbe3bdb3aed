"""Staging: a text's files are read once, and its records kept where any of them is found at once.

A staged text lies in `<root>/texts/<hash>/`: `records.jsonl` with a record a line, `index.npz`
with where each line begins and which of them each split has, and `facts.json`, written last. The
folder is named by the settings and by the content of the files, so a text is staged once however
often a corpus is made of it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from glob import glob
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..lock import locked
from ..ngrams import NgramIndex
from .config import TextConfig
from .fetching import read_fetched
from .files import content_hashes
from .normalise import records_of
from .progress import Reading, reading_bar
from .readers import read_file
from .records import Bad, Record
from .store import RecordStore, RecordWriter
from .test_sets import test_set

FACTS = "facts.json"
VERSION = 2  # raise it with any change of what a text is staged to
MOST_EXAMPLES = 3
MOST_ORIGINS = 1_000


class StagedText:
    """Records at random access, each in one of the splits train and validation.

    Attributes:
        folder: where it lies.
        facts: what was read, kept and left out, with examples.
        origins: the licence and source of its records, each pair once.
    """

    def __init__(self, folder: Path) -> None:
        """Open what `stage` has left."""
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
        self.origins = [(origin["licence"], origin["source"]) for origin in self.facts["origins"]]
        self._numbers = {origin: number for number, origin in enumerate(self.origins)}
        self._store = RecordStore(folder)

    @property
    def hash(self) -> str:
        """Of all records and their splits: what enters the definition of a corpus."""
        return self.facts["hash"]

    def num_records(self, split: str) -> int:
        """How many records a split has."""
        return len(self._store.split(split))

    def read(self, split: str, index: int) -> Record:
        """One record of a split."""
        return self._store.read(int(self._store.split(split)[index]))

    def origin_of(self, record: Record) -> int:
        """The number of a record's licence and source among the origins."""
        return self._numbers[record.licence, record.source]


def open_staged(folder: Path) -> StagedText:
    """A staged text by its folder."""
    return StagedText(folder)


def stage(config: TextConfig, root: Path, key: str, progress: bool = True) -> StagedText:
    """Read a text's files, or find them read.

    Args:
        config: which files, and what is what in them.
        root: of corpora; the store lies in its folder `texts`.
        key: where the text stands in the settings, for messages.
        progress: show a bar on standard error, where that is a terminal.

    Raises:
        ValueError: no file is there, or a record can't be used and `on_bad` is refuse; one line
            with the key, the place and what to do.
        data.atomic.WriteError: the store can't be written.
    """
    files = files_of(config, root, key)
    hashes = content_hashes(files, root / "texts")
    folder = root / "texts" / _name(config, files, hashes)
    if not (folder / FACTS).is_file():
        with locked(folder, progress):
            if not (folder / FACTS).is_file():
                _Stager(config, folder, key).run(files, progress)
    return StagedText(folder)


def files_of(config: TextConfig, root: Path, key: str) -> list[Path]:
    """The files of a text, in order; ValueError where a pattern has none."""
    recipe = config.known()
    if config.files or recipe is None:
        patterns = config.files
    else:
        folder = fetched_folder(root, recipe.name)
        _check_complete(folder, recipe.name, key)
        patterns = [str(folder / "*.jsonl.gz")]
    found: list[Path] = []
    for pattern in patterns:
        paths = sorted(path for path in map(Path, glob(pattern)) if path.is_file())
        if not paths and recipe is not None and not config.files:
            columns = ", ".join(recipe.columns)
            raise ValueError(
                f"{key}.recipe={recipe.name}: no file {pattern}; fetch it with"
                f" `python -m data.fetch recipe={recipe.name}`, or name a local file with the"
                f" fields {columns}:"
                f" {key}.files=[{recipe.name}.jsonl]"
            )
        if not paths:
            raise ValueError(f"{key}.files={pattern}: there is no such file")
        found += [path for path in paths if path not in found]
    return found


def _check_complete(folder: Path, recipe: str, key: str) -> None:
    """Refuse a dataset whose fetching was interrupted: a part of it looks like all of it."""
    fetched = read_fetched(folder)
    if fetched is not None and not fetched.complete:
        raise ValueError(
            f"{key}.recipe={recipe}: {folder} holds only the first {fetched.records():,} records,"
            f" for its fetching was interrupted; `python -m data.fetch recipe={recipe}` goes on,"
            f" {key}.files=[{folder}/*.jsonl.gz] takes what is there"
        )


def fetched_folder(root: Path, recipe: str) -> Path:
    """Where `python -m data.fetch` leaves a dataset."""
    return root / "fetched" / recipe


def _name(config: TextConfig, files: list[Path], hashes: list[str]) -> str:
    """By the settings, and by what stands in the files and how their endings have it read."""
    settings = {k: v for k, v in asdict(config).items() if k != "files"}
    read_as = [[config.format_of(path), path.suffix == ".gz"] for path in files]
    text = json.dumps([VERSION, settings, hashes, read_as], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Stager:
    """Reads files into a store and counts what becomes of their records."""

    def __init__(self, config: TextConfig, folder: Path, key: str) -> None:
        self.config, self.folder, self.key = config, folder, key
        self.bad: dict[str, dict[str, Any]] = {}
        self.origins: dict[tuple[str, str], int] = {}
        self.read = self.cut = 0
        self.held_out = self._held_out_index()

    def _held_out_index(self) -> NgramIndex:
        """The questions that no record may hold; reading them fails where a test set isn't here."""
        sets = [test_set(name) for name in self.config.held_out]
        return NgramIndex(
            {one.name: [p.question for n in one.levels for p in one.fixed(n)] for one in sets}
        )

    def run(self, files: list[Path], progress: bool) -> None:
        """Write the store, then the facts that say that it is complete."""
        with RecordWriter(self.folder) as store, reading_bar(files, progress) as reading:
            for path in files:
                for record in self._records(path, reading):
                    store.append(record, self._origin_of(record))
            reading.finish()
            self._check_any(store.appended)
            kept = store.finish(self.config.deduplicate)
        facts = {
            "hash": kept.hash,
            "read": self.read,
            "kept": kept.records,
            "duplicates": kept.duplicates,
            "cut": self.cut,
            "bytes": kept.bytes,
            "splits": kept.splits,
            "bad": self.bad,
            "origins": [
                {"licence": licence, "source": source, "records": kept.origins[number]}
                for (licence, source), number in self.origins.items()
            ],
        }
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        write_atomically(self.folder / FACTS, f"{text}\n".encode())

    def _records(self, path: Path, reading: Reading) -> Iterator[Record]:
        kind = self.config.format_of(path)
        for raw in read_file(path, kind, self.config.document, reading.of(path)):
            self.read += 1
            found = [raw] if isinstance(raw, Bad) else list(records_of(raw, self.config))
            self.cut += len(found) > 1
            for record in found:
                if isinstance(record, Bad):
                    self._count_bad(record)
                elif (found_in := self._held_out(record)) is not None:
                    self._count(found_in)
                else:
                    yield record

    def _held_out(self, record: Record) -> Bad | None:
        if not self.config.held_out:
            return None
        parts = (record.text, record.question, *record.steps, record.answer)
        found = self.held_out.group_of("\n".join(part for part in parts if part))
        if found is None:
            return None
        return Bad(f"held out: shares words with a question of {found[0]}", record.place, found[1])

    def _count_bad(self, bad: Bad) -> None:
        refused = self.config.too_long if bad.kind == "too long" else self.config.on_bad
        if refused == "refuse":
            setting = "too_long" if bad.kind == "too long" else "on_bad"
            raise ValueError(
                f"{self.key}: {bad}; mend it, or set {self.key}.{setting}=skip to count such"
                " records and leave them out"
            )
        self._count(bad)

    def _count(self, bad: Bad) -> None:
        entry = self.bad.setdefault(bad.kind, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < MOST_EXAMPLES:
            entry["examples"].append({"place": bad.place, "begins": bad.excerpt})

    def _check_any(self, records: int) -> None:
        if not records:
            why = "; ".join(
                f"{entry['count']:,} times {kind}, as at {entry['examples'][0]['place']}"
                for kind, entry in self.bad.items()
            )
            raise ValueError(f"{self.key}: none of {self.read:,} records can be used ({why})")

    def _origin_of(self, record: Record) -> int:
        """The number of a record's licence and source."""
        number = self.origins.setdefault((record.licence, record.source), len(self.origins))
        if number >= MOST_ORIGINS:
            raise ValueError(
                f"{self.key}: more than {MOST_ORIGINS:,} pairs of licence and source (at"
                f" {record.place}); map fields.source to something coarser, as a dataset's name"
            )
        return number
