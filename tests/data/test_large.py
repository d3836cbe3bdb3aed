"""Shards beyond 2 GiB: made, and read to their last row."""

from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.corpus import Corpus
from data.make import make_corpus
from data.source_config import SourceConfig
from data.texts.config import TextConfig
from data.tokenizer import TokenizerConfig

WORDS = "the quick brown fox jumps over a lazy dog and counts to"


@pytest.mark.nightly
def test_a_shard_of_more_than_two_gibibytes(tmp_path: Path) -> None:
    """240 million tokens of nine bytes; needs 4 GB of disk and 10 GB of memory."""
    path = tmp_path / "lines.txt"
    with open(path, "w") as file:
        for number in range(6_500):
            file.write(f"{number} {f'{WORDS} {number} ' * 70}\n")
    config = DataConfig(
        root=str(tmp_path),
        context=2048,
        num_documents=62_000,
        num_validation_documents=0,
        documents_per_shard=62_000,
        workers=1,
        tokenizer=TokenizerConfig("bytes"),
        sources={"lines": SourceConfig(text=TextConfig(files=[str(path)], document="line"))},
    )
    corpus = Corpus.open(make_corpus(config, progress=False))
    (shard,) = corpus.manifest["splits"]["train"]["shards"]
    assert shard["bytes"] > 2 << 30
    rows = corpus.split("train")
    last = rows.read(np.array([rows.num_rows - 1]))
    text = corpus.tokenizer.decode(last.tokens[0][last.segments[0] >= 0].tolist())
    assert "quick brown fox" in text
    assert last.loss.sum() == pytest.approx(rows.loss_sum(np.array([rows.num_rows - 1])))
