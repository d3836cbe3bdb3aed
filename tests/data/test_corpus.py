"""Reading a corpus: what was written comes back, and damage is named in one line."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data import corpus as corpus_module
from data.batch import Batch
from data.corpus import Corpus, PackedRows, RowArrays
from data.generate import documents
from data.recipe import open_recipe
from data.roles import Role
from data.shards import CorpusError, record_dtype
from data.tasks.task import TRACES


@pytest.fixture(scope="module")
def train(small_corpus: Path) -> PackedRows:
    return Corpus.open(small_corpus).split("train")


@pytest.fixture
def damaged(small_corpus: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(small_corpus, tmp_path / "copy"))


def everything(rows: PackedRows) -> RowArrays:
    return rows.read(np.arange(rows.num_rows))


def fields_of(rows: RowArrays) -> list[np.ndarray]:
    return [rows.tokens, rows.targets, rows.segments, rows.roles, rows.loss]


def test_every_document_comes_back(train: PackedRows, small_corpus: Path, config_at) -> None:
    config, opened = config_at(small_corpus.parent), Corpus.open(small_corpus)
    written = sorted(
        (
            document.source.number,
            document.level,
            document.encoded.tokens.tolist(),
            document.encoded.targets.tolist(),
            document.encoded.roles.tolist(),
            document.encoded.loss.tolist(),
        )
        for job in open_recipe(config).jobs()
        if job.split == "train"
        for document in documents(config, opened.tokenizer, "train", job.part, {})
    )
    rows = everything(train)
    read = []
    for row in range(train.num_rows):
        for segment, entry in enumerate(rows.documents(row)):
            place = rows.segments[row] == segment
            content = [array[row, place].tolist() for array in fields_of(rows)]
            read.append((int(entry["source"]), int(entry["level"]), *content[:2], *content[3:]))
    assert sorted(read) == written


def test_segments_are_contiguous_and_padding_is_blank(train: PackedRows) -> None:
    rows = everything(train)
    padding = rows.segments == -1
    for segments in rows.segments:
        inside = segments[segments >= 0]
        assert np.array_equal(segments[: inside.size], inside)
        assert inside[0] == 0
        assert set(np.diff(inside)) <= {0, 1}
    pad_id = train._corpus.tokenizer.pad_id
    assert padding.any()
    assert set(rows.tokens[padding]) == {pad_id}
    assert set(rows.targets[padding]) == {pad_id}
    assert not rows.loss[padding].any()
    assert np.array_equal(rows.roles == Role.PAD, padding)


def test_arrays_have_the_promised_types(train: PackedRows) -> None:
    rows = train.read(np.array([0, 2]))
    assert [array.shape for array in fields_of(rows)] == [(2, 64)] * 5
    assert [array.dtype for array in fields_of(rows)] == [np.int64] * 4 + [np.float32]
    assert all(array.flags.c_contiguous and array.flags.writeable for array in fields_of(rows))


def test_any_order_of_rows(train: PackedRows) -> None:
    """Rows of several shards, repeated and out of order, each as if it were read alone."""
    indices = np.array([train.num_rows - 1, 0, 5, 5, train.num_rows // 2])
    together = train.read(indices)
    for row, index in enumerate(indices):
        alone = train.read(np.array([index]))
        for one, many in zip(fields_of(alone), fields_of(together), strict=True):
            assert np.array_equal(one[0], many[row])
        assert np.array_equal(alone.documents(0), together.documents(row))


def test_no_rows_can_be_read(train: PackedRows) -> None:
    rows = train.read(np.empty(0, np.int64))
    assert rows.tokens.shape == (0, 64)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_rows_outside_are_refused(train: PackedRows, index: int) -> None:
    with pytest.raises(IndexError):
        train.read(np.array([index]))


def test_denominators_are_sums_of_the_loss(train: PackedRows) -> None:
    rows = everything(train)
    assert train.loss_sum(np.arange(train.num_rows)) == rows.loss.sum(dtype=np.float64)
    some = np.array([3, 1, 4])
    assert train.loss_sum(some) == rows.loss[some].sum(dtype=np.float64)
    shares = train._corpus.manifest["splits"]["train"]["sources"]
    assert sum(source["loss"] for source in shares.values()) == rows.loss.sum(dtype=np.float64)


def test_tables_tell_source_and_trace(train: PackedRows) -> None:
    """The trace id of a document is what its tokens show."""
    opened = train._corpus
    assert opened.source_names == ["dense", "direct", "written"]
    rows = everything(train)
    for row in range(train.num_rows):
        for segment, entry in enumerate(rows.documents(row)):
            place = rows.segments[row] == segment
            source = opened.manifest["sources"][opened.source_names[entry["source"]]]
            assert TRACES[entry["trace"]] == source["trace"]
            assert entry["level"] in source["levels"]
            assert entry["length"] == place.sum()
            written = opened.tokenizer.think_id in rows.tokens[row, place]
            assert written == (source["trace"] != "none")


def test_few_shards_stay_mapped(train: PackedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "_MAX_MAPPED_SHARDS", 1)
    fresh = train._corpus.split("train")
    indices = np.arange(train.num_rows)[::-1]
    assert np.array_equal(fresh.read(indices).tokens, train.read(indices).tokens)
    assert len(fresh._mapped) == 1


def test_another_process_maps_the_files_itself(train: PackedRows) -> None:
    again = copy.copy(train)  # by the same protocol as a data-loading process
    assert again._mapped is not train._mapped
    assert np.array_equal(everything(again).tokens, everything(train).tokens)


def test_large_vocabularies_take_four_bytes() -> None:
    assert record_dtype(1 << 16)["token"] == np.uint16
    assert record_dtype((1 << 16) + 1)["token"] == np.uint32


def test_batch_carries_rows_and_denominator(train: PackedRows) -> None:
    indices = np.array([0, 3])
    rows = train.read(indices)
    batch = Batch.from_rows(rows, train.loss_sum(indices)).to("cpu")
    assert batch.denominator.shape == ()
    assert batch.denominator.item() == rows.loss.sum()
    assert batch.loss_BT.dtype == torch.float32
    for tensor, array in zip(
        [batch.tokens_BT, batch.targets_BT, batch.segments_BT, batch.roles_BT],
        fields_of(rows),
        strict=False,
    ):
        assert tensor.dtype == torch.long
        assert np.array_equal(tensor.numpy(), array)


def one_line(error: pytest.ExceptionInfo[CorpusError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        Corpus.open(tmp_path / "nowhere")
    one_line(error, "nowhere", "python -m data")


def test_missing_manifest(damaged: Path) -> None:
    (damaged / "manifest.json").unlink()
    with pytest.raises(CorpusError) as error:
        Corpus.open(damaged)
    one_line(error, "manifest.json", "interrupted", "python -m data")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"hash": "0"}', "\x00\xff"])
def test_damaged_manifest(damaged: Path, content: str) -> None:
    (damaged / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(CorpusError) as error:
        Corpus.open(damaged)
    one_line(error, "manifest.json", "damaged")


def test_edited_manifest(damaged: Path) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["splits"]["train"]["rows"] += 1
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match="damaged"):
        Corpus.open(damaged)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_missing_shard(damaged: Path, ending: str) -> None:
    (damaged / f"train/shard-00001{ending}").unlink()
    with pytest.raises(CorpusError) as error:
        Corpus.open(damaged, verify=False)
    one_line(error, f"shard-00001{ending}", "missing", "python -m data")


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_truncated_shard(damaged: Path, ending: str) -> None:
    path = damaged / f"validation/shard-00000{ending}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorpusError) as error:
        Corpus.open(damaged, verify=False)
    one_line(error, f"shard-00000{ending}", "damaged", "bytes", "python -m data")


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_flipped_byte(damaged: Path, ending: str) -> None:
    path = damaged / f"train/shard-00002{ending}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Corpus.open(damaged, verify=False)
    with pytest.raises(CorpusError) as error:
        Corpus.open(damaged)
    one_line(error, f"shard-00002{ending}", "checksum", "python -m data")


def test_garbage_index(damaged: Path) -> None:
    path = damaged / "train/shard-00000.idx"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorpusError) as error:
        Corpus.open(damaged, verify=False).split("train")
    one_line(error, "shard-00000.idx")


def test_unknown_split(small_corpus: Path) -> None:
    with pytest.raises(CorpusError) as error:
        Corpus.open(small_corpus).split("dev")
    one_line(error, "dev", "train, validation")
