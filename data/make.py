"""Making a corpus: shards side by side in processes, then the manifest.

A shard is a function of the definition and its number, so the bytes don't depend on the workers,
and a run that was interrupted goes on from the shards that are finished: each has a `.json` beside
it, written last, with its counts and checksums. The manifest is written when all shards are there.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .atomic import TEMPORARY_SUFFIX, WriteError
from .config import DataConfig
from .generate import drawable_sources, encoded, make_shard
from .manifest import (
    MANIFEST,
    Json,
    build_manifest,
    corpus_definition,
    json_hash,
    read_manifest,
    write_json,
)
from .pool import Tick, run_in_processes
from .shards import CorpusError, check_shard, shard_stem, write_shard
from .tokenizer import Tokenizer, TokenizerConfig, tokenizer_from_config

_DOCUMENTS_PER_PROCESS = 2_000  # with fewer, starting a process takes longer than it saves
Show = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """One shard to make: documents `numbers` of a split."""

    config: DataConfig
    folder: Path
    definition_hash: str
    split: str
    shard: int
    numbers: range

    @property
    def stem(self) -> str:
        """Path of the shard inside the corpus, without the ending."""
        return shard_stem(self.split, self.shard)

    @property
    def facts(self) -> Path:
        """The file whose presence says that the shard is finished."""
        return self.folder / f"{self.stem}.json"


def corpus_path(config: DataConfig) -> Path:
    """The folder of a corpus: its name and the first 12 digits of its definition's hash."""
    tokenizer = _tokenizer(config)
    return Path(config.root) / f"{config.name}-{_definition_hash(config, tokenizer)[:12]}"


def make_corpus(config: DataConfig, progress: bool = True) -> Path:
    """Make a corpus, or find it finished; an interrupted one is gone on with.

    Args:
        config: what to make, and where.
        progress: show a progress bar on standard error, where that is a terminal.

    Returns:
        The corpus's folder, for `Corpus.open`.

    Raises:
        ValueError: the configuration is not possible, a file cannot be written (`WriteError`), or
            a worker was killed (`WorkerLostError`); one line. Finished shards are kept.
    """
    config.validate()
    folder = corpus_path(config)
    if _is_finished(folder):
        return folder
    _check_encodable(config)
    with _locked(folder, progress):
        if not _is_finished(folder):
            _remove_temporaries(folder)
            _make(config, folder, progress)
    return folder


def _make(config: DataConfig, folder: Path, progress: bool) -> None:
    jobs = _jobs(config, folder)
    with _progress_bar(jobs, progress) as show:
        entries = _make_shards(config, jobs, show)
    shards: dict[str, list[Json]] = {"train": [], "validation": []}
    for job, entry in zip(jobs, entries, strict=True):
        shards[job.split].append(entry)
    write_json(folder / MANIFEST, build_manifest(config, _tokenizer(config), shards))


def _tokenizer(config: DataConfig) -> Tokenizer:
    tokenizer = config.tokenizer
    return _built_tokenizer(tokenizer.kind, tokenizer.path, tuple(tokenizer.tasks), config.tasks)


@lru_cache(maxsize=4)
def _built_tokenizer(
    kind: str, path: str | None, further: tuple[str, ...], tasks: tuple[str, ...]
) -> Tokenizer:
    return tokenizer_from_config(TokenizerConfig(kind, path, list(further)), tasks)


def _definition_hash(config: DataConfig, tokenizer: Tokenizer) -> str:
    return json_hash(corpus_definition(config, tokenizer))


def _is_finished(folder: Path) -> bool:
    """Whether the manifest is there and whole, and every shard has its size."""
    try:
        for split in read_manifest(folder)["splits"].values():
            for entry in split["shards"]:
                check_shard(folder, entry, checksum=False)
    except CorpusError:
        return False
    return True


def _check_encodable(config: DataConfig) -> None:
    """Encode one document of each source and level, so that what can't be written fails at once."""
    tokenizer = _tokenizer(config)
    for source in drawable_sources(config, "train"):
        for level in sorted(set(source.levels)):
            encoded(config, tokenizer, "train", source, level, 0)


def _jobs(config: DataConfig, folder: Path) -> list[Job]:
    """The shards of all splits. Without a source that a split may draw from, it has none."""
    definition_hash = _definition_hash(config, _tokenizer(config))
    counts = {"train": config.num_documents, "validation": config.num_validation_documents}
    return [
        Job(config, folder, definition_hash, split, shard, range(first, last))
        for split, count in counts.items()
        if drawable_sources(config, split)
        for shard, first in enumerate(range(0, count, config.documents_per_shard))
        for last in [min(first + config.documents_per_shard, count)]
    ]


def _make_shards(config: DataConfig, jobs: list[Job], show: Show) -> list[Json]:
    """Entries of all shards, in order; those that are finished are not made again."""
    entries = {job.stem: entry for job in jobs if (entry := _finished_entry(job))}
    missing = [job for job in jobs if job.stem not in entries]
    before = sum(len(job.numbers) for job in jobs if job.stem in entries)
    show(before)
    workers = _num_workers(config.workers, missing)
    if workers > 1:
        made = run_in_processes(_work, missing, workers, lambda done: show(before + done))
    else:
        made = _made_here(missing, before, show)
    entries |= {job.stem: entry for job, entry in zip(missing, made, strict=True)}
    return [entries[job.stem] for job in jobs]


def _num_workers(asked: int, jobs: list[Job]) -> int:
    if asked:
        return min(asked, len(jobs))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    documents = sum(len(job.numbers) for job in jobs)
    return min(cores or 1, len(jobs), -(-documents // _DOCUMENTS_PER_PROCESS))


def _made_here(jobs: list[Job], before: int, show: Show) -> list[Json]:
    done = before

    def tick() -> None:
        nonlocal done
        done += 1
        show(done)

    return [_work(job, tick) for job in jobs]


def _work(job: Job, tick: Tick) -> Json:
    """Make one shard; its facts are written last, because they say that it is finished."""
    tokenizer = _tokenizer(job.config)
    shard, counts = make_shard(job.config, tokenizer, job.split, job.numbers, tick)
    entry = {
        **write_shard(job.folder, job.stem, shard),
        **counts,
        "documents": len(job.numbers),
    }
    write_json(job.facts, {"definition_hash": job.definition_hash, "entry": entry})
    return entry


def _finished_entry(job: Job) -> Json | None:
    """The entry of a finished shard whose files match their checksums, or None."""
    try:
        facts = json.loads(job.facts.read_bytes())
        if facts["definition_hash"] != job.definition_hash:
            return None
        check_shard(job.folder, facts["entry"], checksum=True)
        return facts["entry"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_temporaries(folder: Path) -> None:
    """What a run that was killed left half-written."""
    for path in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink()


@contextlib.contextmanager
def _locked(folder: Path, progress: bool) -> Iterator[None]:
    """Hold the folder, so that runs that need the same corpus make it once and the others wait."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115 (closed below, which also gives the lock back)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                print(f"waiting for another process that makes {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress_bar(jobs: list[Job], progress: bool) -> Iterator[Show]:
    """A bar of documents with the time left, on standard error where that is a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
    )
    with bar:
        task = bar.add_task("making the corpus", total=sum(len(job.numbers) for job in jobs))
        yield lambda done: bar.update(task, completed=done)
