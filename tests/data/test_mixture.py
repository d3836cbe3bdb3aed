"""The mixture: which source each document comes from, whatever the shard it is made in."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.corpus import Corpus
from data.make import make_corpus
from data.mixture import Drawable, Pick, parts, phase_starts, picks, record_indices
from data.recipe import open_recipe
from data.source_config import ScheduleStep, SourceConfig

PARITY = SourceConfig("parity", "none", [8, 16])
IGSM = SourceConfig("igsm", "full", [8])


def config_of(root: Path, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "root": str(root),
        "context": 256,
        "num_documents": 2_000,
        "num_validation_documents": 0,
        "documents_per_shard": 300,
        "workers": 1,
        "sources": {"short": PARITY, "long": IGSM},
    }
    return DataConfig(**{**settings, **changes})


def drawn(config: DataConfig) -> list[Pick]:
    jobs = open_recipe(config).jobs()
    return [pick for job in jobs for pick in picks(job.part, "train", config.seed)]


def names(found: list[Pick]) -> Counter[str]:
    return Counter(pick.source.name for pick in found)


def plain(found: list[Pick]) -> list[tuple[int, str, int, int]]:
    return [(pick.number, pick.source.name, pick.level, pick.ordinal) for pick in found]


@pytest.mark.parametrize("size", [7, 100, 2_000])
def test_shards_only_cut_one_sequence(tmp_path: Path, size: int) -> None:
    """Also where a source runs out and phases change in the middle of a shard."""
    capped = SourceConfig("s3_swaps", "full", [2, 3], 3.0, max_epochs=5)
    early = SourceConfig("parity", "none", [8], schedule=[ScheduleStep(0.4, [2, 4], 2.0)])
    sources = {"capped": capped, "early": early, "long": IGSM}
    whole = drawn(config_of(tmp_path, sources=sources, documents_per_shard=5_000))
    assert plain(drawn(config_of(tmp_path, sources=sources, documents_per_shard=size))) == plain(
        whole
    )
    assert [pick.number for pick in whole] == list(range(2_000))


def test_seed_and_split_key_the_draws(tmp_path: Path) -> None:
    first = plain(drawn(config_of(tmp_path)))
    assert plain(drawn(config_of(tmp_path, seed=1))) != first
    (job, *_) = open_recipe(config_of(tmp_path)).jobs()
    assert plain(picks(job.part, "validation", 0)) != first[: len(job.part.numbers)]


def test_shares_follow_weights_and_levels(tmp_path: Path) -> None:
    double = SourceConfig("s3_swaps", "none", [8, 8, 16], 2.0)
    found = drawn(config_of(tmp_path, num_documents=20_000, sources={"a": double, "b": PARITY}))
    assert abs(names(found)["a"] / 20_000 - 2 / 3) < 0.02
    levels = Counter(pick.level for pick in found if pick.source.name == "a")
    assert abs(levels[8] / levels.total() - 2 / 3) < 0.02


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5)])
def test_temperature_flattens_the_shares(tmp_path: Path, temperature: float, share: float) -> None:
    nine = SourceConfig("parity", "none", [8], 9.0)
    config = config_of(
        tmp_path,
        num_documents=20_000,
        temperature=temperature,
        sources={"nine": nine, "one": SourceConfig("parity", "none", [8])},
    )
    assert abs(names(drawn(config))["nine"] / 20_000 - share) < 0.015


def test_weights_can_be_shares_of_tokens(tmp_path: Path) -> None:
    three = SourceConfig("parity", "none", [8, 16], 3.0)
    config = config_of(tmp_path, weigh_by="tokens", sources={"short": three, "long": IGSM})
    sources = Corpus.open(make_corpus(config, progress=False)).manifest["splits"]["train"][
        "sources"
    ]
    assert sources["short"]["documents"] > 20 * sources["long"]["documents"]
    # 60-odd long documents make the share of tokens uncertain by an eighth.
    assert sources["short"]["tokens"] / sources["long"]["tokens"] == pytest.approx(3, rel=0.4)


def test_a_finite_source_is_read_so_often_and_no_more(tmp_path: Path) -> None:
    """Level 2 has 9 words and level 3 has 27; what it leaves goes to the other source."""
    capped = SourceConfig("s3_swaps", "full", [2, 3], 4.0, max_epochs=2.5)
    found = drawn(config_of(tmp_path, sources={"capped": capped, "long": IGSM}))
    assert names(found) == {"capped": 90, "long": 1_910}
    last = max(pick.number for pick in found if pick.source.name == "capped")
    assert last < 150
    assert [p.ordinal for p in found if p.source.name == "capped"] == list(range(90))


def test_sources_that_run_out_before_the_end_are_refused(tmp_path: Path) -> None:
    capped = SourceConfig("s3_swaps", "full", [2], max_epochs=2)
    with pytest.raises(ValueError, match=r"data.num_documents=2000 .* used up after 18; lower it"):
        make_corpus(config_of(tmp_path, sources={"capped": capped}), progress=False)


def test_a_level_schedule_gives_each_phase_its_share_of_tokens(tmp_path: Path) -> None:
    steps = [ScheduleStep(0.25, [2], None), ScheduleStep(0.5, [8], 1.0)]
    climbing = SourceConfig("igsm", "full", [12], schedule=steps)
    late = SourceConfig("parity", "none", [8], schedule=[ScheduleStep(0.5, None, 0.0)])
    config = config_of(tmp_path, sources={"climbing": climbing, "late": late}, context=2048)
    assert phase_starts(config) == [0.0, 0.25, 0.5]
    corpus = Corpus.open(make_corpus(config, progress=False))
    rows = [phase.rows for phase in corpus.split("train").phases]
    assert sum(rows) == corpus.split("train").num_rows
    assert np.cumsum(rows)[:2] / sum(rows) == pytest.approx([0.25, 0.5], abs=0.02)
    table = corpus.split("train").read(np.arange(rows[0])).document_table
    assert set(table["level"].tolist()) == {2}
    table = corpus.split("train").read(np.arange(rows[0], rows[0] + rows[1])).document_table
    assert set(table["level"].tolist()) == {8}
    table = corpus.split("train").read(np.arange(rows[0] + rows[1], sum(rows))).document_table
    assert set(table["level"].tolist()) == {8, 12} and set(table["source"].tolist()) == {0, 1}


def test_without_a_schedule_nothing_new_enters_the_definition(tmp_path: Path) -> None:
    """So that corpora of older versions keep their hashes."""
    manifest = Corpus.open(make_corpus(config_of(tmp_path, num_documents=50), False)).manifest
    known = {"dense", "levels", "task", "trace", "weight"}
    assert set(manifest["definition"]["sources"]["short"]) == known
    assert set(manifest["definition"]["loss"]) == {"question", "trace", "answer", "label"}
    assert not {"weigh_by", "temperature"} & set(manifest["definition"])
    assert "phases" not in manifest


@given(st.integers(1, 300), st.integers(0, 900), st.integers(1, 200))
@settings(deadline=None)
def test_each_epoch_of_a_text_reads_each_record_once(size: int, start: int, count: int) -> None:
    whole = record_indices("book", 0, np.arange(4 * size), size).reshape(4, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in whole.tolist())
    ordinals = np.arange(start % (3 * size), min(start % (3 * size) + count, 4 * size))
    assert np.array_equal(record_indices("book", 0, ordinals, size), whole.ravel()[ordinals])


@given(
    caps=st.lists(st.one_of(st.integers(0, 60), st.just(math.inf)), min_size=1, max_size=4),
    size=st.integers(1, 60),
)
@settings(deadline=None)
def test_caps_hold_and_all_is_used(caps: list[float], size: int) -> None:
    sources = [Drawable(i, str(i), PARITY, [8], 1.0 + i) for i in range(len(caps))]
    capacities = {str(i): cap for i, cap in enumerate(caps)}
    shards = [range(first, min(first + size, 200)) for first in range(0, 200, size)]
    made = parts(shards, lambda phase: sources, [range(200)], capacities, "train", 0)
    counts = names([pick for part in made for pick in picks(part, "train", 0)])
    assert all(counts[str(i)] <= cap for i, cap in enumerate(caps))
    assert counts.total() == min(200, sum(caps))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weigh_by": "bytes"}, "data.weigh_by='bytes' .* problems, tokens"),
        ({"temperature": 0.0}, r"data.temperature=0.0 .* above 0"),
        ({"max_epochs": 0.0}, r"data.sources.short.max_epochs=0.0 .* above 0, or null"),
        ({"schedule": [ScheduleStep(0.0)]}, r"schedule\[0\].until=0.0 .* above 0"),
        ({"schedule": [ScheduleStep(0.5), ScheduleStep(0.4)]}, r"schedule\[1\].until=0.4 .* 0.5"),
        ({"schedule": [ScheduleStep(1.5)]}, r"schedule\[0\].until=1.5 .* up to 1"),
        ({"schedule": [ScheduleStep(0.5, [900])]}, r"schedule\[0\].levels=900"),
        ({"schedule": [ScheduleStep(0.5, None, -1.0)]}, r"schedule\[0\].weight=-1.0"),
        ({"schedule": [ScheduleStep(0.5, None, 0.0)]}, "no source from 0 on"),
    ],
)
def test_impossible_mixtures_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    of_corpus = {k: v for k, v in changes.items() if k in ("weigh_by", "temperature")}
    of_source = {k: v for k, v in changes.items() if k not in of_corpus}
    sources = {"short": SourceConfig("parity", "none", [8], **of_source)}
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, sources=sources, **of_corpus).validate()
