"""Making a corpus: shards side by side in processes, then the manifest.

A shard is a function of the definition and its number, so the bytes don't depend on the workers,
and a run that was interrupted goes on from the shards that are finished: each has a `.json` beside
it, written last, with its counts and checksums. The manifest is written when all shards are there.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
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

from .adapters.adapter import BorrowedTask
from .atomic import TEMPORARY_SUFFIX, write_atomically
from .config import DataConfig
from .generate import make_shard
from .lock import locked
from .manifest import MANIFEST, Json, build_manifest, read_manifest, write_json
from .pool import Tick, run_in_processes
from .recipe import Job, Recipe, open_recipe
from .shards import CorpusError, check_shard, write_shard
from .task_list import find_task

_DOCUMENTS_PER_PROCESS = 2_000  # with fewer, starting a process takes longer than it saves
Show = Callable[[int], None]


def corpus_path(config: DataConfig) -> Path:
    """The folder of a corpus: its name and the first 12 digits of its definition's hash."""
    return open_recipe(config, progress=False).folder


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
    recipe = open_recipe(config, progress)
    if _is_finished(recipe.folder):
        return recipe.folder
    recipe.check_encodable()
    with locked(recipe.folder, progress):
        if not _is_finished(recipe.folder):
            _remove_temporaries(recipe.folder)
            _make(recipe, progress)
    return recipe.folder


def _make(recipe: Recipe, progress: bool) -> None:
    jobs = recipe.jobs()
    with _progress_bar(jobs, progress) as show:
        entries = _make_shards(recipe.config, jobs, show)
    shards: dict[str, list[Json]] = {"train": [], "validation": []}
    for job, entry in zip(jobs, entries, strict=True):
        shards[job.split].append(entry)
    manifest = build_manifest(recipe.config, recipe.tokenizer, recipe.texts, shards)
    if definition := manifest["tokenizer"]["spec"].get("definition"):
        write_atomically(recipe.folder / "tokenizer.json", definition.encode())
    write_json(recipe.folder / MANIFEST, manifest)


def _is_finished(folder: Path) -> bool:
    """Whether the manifest is there and whole, and every shard has its size."""
    try:
        for split in read_manifest(folder)["splits"].values():
            for entry in split["shards"]:
                check_shard(folder, entry, checksum=False)
    except CorpusError:
        return False
    return True


def _make_shards(config: DataConfig, jobs: list[Job], show: Show) -> list[Json]:
    """Entries of all shards, in order; those that are finished are not made again."""
    entries = {job.stem: entry for job in jobs if (entry := _finished_entry(job))}
    missing = [job for job in jobs if job.stem not in entries]
    before = sum(len(job.part.numbers) for job in jobs if job.stem in entries)
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
    documents = sum(len(job.part.numbers) for job in jobs)
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
    before = _rejections(job)
    shard, counts = make_shard(
        job.config, job.tokenizer(), job.split, job.part, job.open_texts(), tick
    )
    _count_rejections(job, before, counts["sources"])
    entry = {
        **write_shard(job.folder, job.stem, shard),
        **counts,
        "documents": len(job.part.numbers),
    }
    if job.phase is not None:
        entry["phase"] = job.phase
    write_json(job.facts, {"definition_hash": job.definition_hash, "entry": entry})
    return entry


def _rejections(job: Job) -> dict[str, int]:
    """How many items each borrowed task has thrown away in this process so far."""
    tasks = {name: find_task(name) for name in job.config.tasks}
    return {
        name: task.rejections.count
        for name, task in tasks.items()
        if isinstance(task, BorrowedTask)
    }


def _count_rejections(job: Job, before: dict[str, int], sources: Json) -> None:
    """Add what was thrown away for this shard to the counts of its source, where there is any."""
    after = _rejections(job)
    for name, source in job.config.named_sources():
        if (more := after.get(source.task, 0) - before.get(source.task, 0)) and name in sources:
            sources[name]["rejected"] = more


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
        task = bar.add_task("making the corpus", total=sum(len(job.part.numbers) for job in jobs))
        yield lambda done: bar.update(task, completed=done)
