"""Making a corpus: the same bytes whatever happens on the way, and an honest manifest."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import make as make_module
from data.atomic import WriteError, write_atomically
from data.config import DataConfig
from data.corpus import Corpus
from data.generate import documents
from data.make import corpus_path, make_corpus
from data.mixture import picks
from data.pool import WorkerLostError, run_in_processes
from data.recipe import open_recipe
from data.shards import CorpusError
from data.source_config import SourceConfig
from data.split import problem_at, split_of
from data.tokenizer import SymbolicTokenizer, TokenizerConfig
from data.vocabulary import first_vocabulary

ConfigFactory = Callable[..., DataConfig]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make(config: DataConfig) -> Path:
    return make_corpus(config, progress=False)


@pytest.mark.multiprocess
def test_workers_do_not_change_a_byte(
    small_corpus: Path, tmp_path: Path, config_at: ConfigFactory
) -> None:
    with_two = make(config_at(tmp_path, workers=2))
    assert content(with_two) == content(small_corpus)


def test_interrupted_and_started_again(
    small_corpus: Path, tmp_path: Path, config_at: ConfigFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write, written = config_at(tmp_path), make_module.write_shard, []

    def stop_after_one(folder: Path, stem: str, shard: Any) -> Any:
        if written:
            raise KeyboardInterrupt
        written.append(stem)
        return write(folder, stem, shard)

    monkeypatch.setattr(make_module, "write_shard", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        make(config)
    with pytest.raises(CorpusError, match="interrupted"):
        Corpus.open(corpus_path(config))
    (corpus_path(config) / "train" / "shard-00001.bin.tmp").write_bytes(b"half")

    def count(folder: Path, stem: str, shard: Any) -> Any:
        written.append(stem)
        return write(folder, stem, shard)

    monkeypatch.setattr(make_module, "write_shard", count)
    assert content(make(config)) == content(small_corpus)
    assert sorted(written) == [
        "train/shard-00000",
        "train/shard-00001",
        "train/shard-00002",
        "validation/shard-00000",
    ]


def test_finished_corpus_is_found_at_once(
    tmp_path: Path, config_at: ConfigFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_at(tmp_path)
    first = make(config)
    monkeypatch.setattr(make_module, "_make", lambda *_: pytest.fail("made again"))
    assert make(config) == first


@pytest.mark.parametrize("harm", ["missing", "truncated", "no manifest", "bad manifest"])
def test_damage_is_mended(
    small_corpus: Path, tmp_path: Path, config_at: ConfigFactory, harm: str
) -> None:
    folder = make(config_at(tmp_path))
    shard, manifest = folder / "train/shard-00001.bin", folder / "manifest.json"
    if harm == "missing":
        shard.unlink()
    elif harm == "truncated":
        shard.write_bytes(shard.read_bytes()[:-5])
    else:
        shard.write_bytes(shard.read_bytes()[::-1])
        manifest.unlink() if harm == "no manifest" else manifest.write_bytes(b"{")
    assert content(make(config_at(tmp_path))) == content(small_corpus)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, config_at: ConfigFactory, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    config, original, calls = config_at(tmp_path), getattr(os, call), []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 5:  # the second shard's index
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            WriteError, match=r"shard-00001\.idx: the disk is full .* free"
        ) as error:
            make(config)
    assert "\n" not in str(error.value)
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(".tmp")]
    assert "manifest.json" not in names
    assert "shard-00001.json" not in names
    Corpus.open(make(config))


def test_an_older_file_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="6 bytes needed"):
        write_atomically(path, b"new", b"est")
    assert content(tmp_path) == {"file": b"old"}


def test_a_folder_that_cannot_be_made(tmp_path: Path, config_at: ConfigFactory) -> None:
    config = config_at(tmp_path)
    corpus_path(config).write_text("in the way")
    with pytest.raises(WriteError, match="cannot be written"):
        make(config)


def raise_in_worker(job: int, tick: Callable[[], None]) -> int:
    for _ in range(100):
        tick()
    if job == 1:
        raise ValueError("job 1 failed")
    return job


def die_in_worker(job: int, tick: Callable[[], None]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.multiprocess
def test_pool_reports_progress_errors_and_deaths() -> None:
    shown: list[int] = []
    assert run_in_processes(raise_in_worker, [2, 3, 4], 1, shown.append) == [2, 3, 4]
    assert shown[-1] == 300
    with pytest.raises(ValueError, match="job 1 failed"):
        run_in_processes(raise_in_worker, [2, 1, 4], 1, shown.append)
    with pytest.raises(WorkerLostError, match="workers=1"):
        run_in_processes(die_in_worker, [0], 1, shown.append)


def test_manifest_counts_what_is_there(small_corpus: Path) -> None:
    manifest = Corpus.open(small_corpus).manifest
    train = manifest["splits"]["train"]
    assert train["documents"] == 300
    assert sum(source["documents"] for source in train["sources"].values()) == 300
    assert sum(source["tokens"] for source in train["sources"].values()) == train["tokens"]
    assert sum(source["loss_share"] for source in train["sources"].values()) == pytest.approx(1)
    for source in train["sources"].values():
        assert sum(source["levels"].values()) == source["documents"]
    assert [shard["documents"] for shard in train["shards"]] == [100, 100, 100]
    assert sum(shard["tokens"] for shard in train["shards"]) == train["tokens"]
    assert train["split_documents"] == 0
    assert train["utilisation"] == train["tokens"] / (train["rows"] * 64) > 0.9
    for source in manifest["sources"].values():
        assert (source["licence"], source["source"]) == ("Apache-2.0", "generated")


def test_validation_is_held_out(small_corpus: Path, config_at: ConfigFactory) -> None:
    config = config_at(small_corpus.parent)
    manifest = Corpus.open(small_corpus).manifest
    assert manifest["sources"]["direct"]["train_only_levels"] == [2, 4]
    assert set(manifest["splits"]["validation"]["sources"]["direct"]["levels"]) <= {"8", "16"}
    (job,) = [job for job in open_recipe(config).jobs() if job.split == "validation"]
    for pick in picks(job.part, "validation", config.seed):
        task = pick.source.config.task
        problem = problem_at(task, pick.level, "validation", config.seed, pick.number)
        assert split_of(problem.task, problem.question) == "validation"


def test_without_levels_to_hold_out_validation_is_empty(
    tmp_path: Path, config_at: ConfigFactory
) -> None:
    config = config_at(tmp_path, sources={"direct": SourceConfig("s3_swaps", "none", [1, 2])})
    opened = Corpus.open(make(config))
    assert opened.manifest["sources"]["direct"]["in_validation"] is False
    assert opened.manifest["splits"]["validation"]["documents"] == 0
    with pytest.raises(CorpusError, match="empty"):
        opened.split("validation")


def test_long_documents_are_cut_and_counted(tmp_path: Path, config_at: ConfigFactory) -> None:
    config = config_at(tmp_path, context=16, num_documents=50, num_validation_documents=0)
    opened = Corpus.open(make(config))
    (job,) = open_recipe(config).jobs()
    lengths = [
        len(document.encoded)
        for document in documents(config, opened.tokenizer, "train", job.part, {})
    ]
    train = opened.manifest["splits"]["train"]
    assert train["split_documents"] == sum(length > 16 for length in lengths) > 0
    assert train["tokens"] == sum(lengths)
    assert sum(shard["pieces"] for shard in train["shards"]) > train["documents"] == 50
    rows = opened.split("train").read(np.arange(train["rows"]))
    assert (rows.segments >= 0).sum() == sum(lengths)


def test_realistic_mixture_packs_well(tmp_path: Path, config_at: ConfigFactory) -> None:
    config = config_at(
        tmp_path,
        context=128,
        num_documents=1_500,
        num_validation_documents=0,
        documents_per_shard=1_500,
        sources={
            "direct": SourceConfig("s3_swaps", "none", [1, 2, 2, 3, 3, 4, 4, 6, 8, 12, 16], 1.0),
            "full": SourceConfig("s3_swaps", "full", [2, 4, 8, 16], 0.3),
        },
    )
    train = Corpus.open(make(config)).manifest["splits"]["train"]
    assert train["utilisation"] > 0.95
    assert train["split_documents"] == 0


CHANGES = [
    {"context": 32},
    {"seed": 1},
    {"num_documents": 301},
    {"num_validation_documents": 41},
    {"documents_per_shard": 99},
    {"tokenizer": TokenizerConfig("bytes"), "sources": {"a": SourceConfig("parity", "none", [8])}},
    {"sources": {"a": SourceConfig("parity", "none", [8])}},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_what_determines_bytes_names_the_folder(
    tmp_path: Path, config_at: ConfigFactory, change: dict[str, Any]
) -> None:
    assert corpus_path(config_at(tmp_path)) != corpus_path(config_at(tmp_path, **change))


def test_what_does_not_determine_bytes_does_not(tmp_path: Path, config_at: ConfigFactory) -> None:
    changed = config_at(tmp_path, workers=3, verify=False)
    changed.sources = dict(reversed(changed.sources.items()))
    assert corpus_path(changed) == corpus_path(config_at(tmp_path))


def test_tokenizer_comes_back(small_corpus: Path) -> None:
    opened = Corpus.open(small_corpus)
    assert opened.tokenizer.fingerprint == SymbolicTokenizer(first_vocabulary()).fingerprint


def test_what_cannot_be_written_is_named_before_any_work(
    tmp_path: Path, config_at: ConfigFactory
) -> None:
    dense = SourceConfig("s3_swaps", "none", [8], dense=True)
    config = config_at(tmp_path, tokenizer=TokenizerConfig("bytes"), sources={"dense": dense})
    with pytest.raises(ValueError, match=r"data\.sources\.dense: .*one token"):
        make(config)
    assert not list(tmp_path.iterdir())
