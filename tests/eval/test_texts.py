"""Bits per byte by hand, and the table of sources."""

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from data.config import DataConfig
from data.corpus import Corpus
from data.make import make_corpus
from data.source_config import SourceConfig
from data.texts.config import TextConfig
from data.tokenizer import TokenizerConfig
from eval.texts import TextScore, read_scores, score_texts, write_scores
from models.backbone import Backbone
from models.config import BackboneConfig
from models.mixers.attention import AttentionConfig
from models.sizing import resolve


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"The {i}th line of {'a ' * (i % 40)}text: {i * i}, ünd so on." for i in range(400)]
    (folder / "lines.txt").write_text("\n".join(lines))
    text = TextConfig(files=[str(folder / "lines.txt")], document="line")
    config = DataConfig(
        root=str(folder),
        context=64,
        num_documents=200,
        num_validation_documents=60,
        workers=1,
        tokenizer=TokenizerConfig("bytes"),
        sources={"lines": SourceConfig(text=text), "words": SourceConfig("s3", "none", [8])},
    )
    return Corpus.open(make_corpus(config, progress=False))


def backbone(corpus: Corpus) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(
        dim=32, num_layers=1, head_dim=16, mixers={"attn": AttentionConfig()}, tie_embeddings=True
    )
    return Backbone(resolve(config, corpus.tokenizer.vocab_size)).eval()


def test_an_untrained_head_pays_for_every_token_alike(corpus: Corpus) -> None:
    """Logits of zero: each token and each end costs the logarithm of the vocabulary."""
    net = backbone(corpus)
    torch.nn.init.zeros_(net.embedding.weight)
    (score,) = score_texts(net, corpus, "cpu")
    counts = corpus.manifest["splits"]["validation"]["sources"]["lines"]
    assert score.source == "lines" and score.bytes == counts["bytes"]
    assert score.tokens == counts["bytes"] + counts["documents"]
    assert score.nats == pytest.approx(score.tokens * log(corpus.tokenizer.vocab_size))
    assert score.bits_per_byte == pytest.approx(score.nats / score.bytes / log(2))
    assert score.low <= score.bits_per_byte <= score.high


def test_nats_are_those_of_a_plain_forward(corpus: Corpus) -> None:
    """Row by row, token by token, with the whole logits at hand."""
    net, rows = backbone(corpus).double(), corpus.split("validation")
    arrays = rows.read(np.arange(rows.num_rows))
    texts = arrays.document_table["source"] == corpus.source_names.index("lines")
    total, entry = 0.0, 0
    for row in range(rows.num_rows):
        segments = torch.from_numpy(arrays.segments[row : row + 1])
        with torch.no_grad():
            output = net(torch.from_numpy(arrays.tokens[row : row + 1]), segments)
            chances = output.readout(output.hidden_BTD).log_softmax(dim=-1)[0]
        for segment in range(int(segments.max()) + 1):
            for place in np.flatnonzero(arrays.segments[row] == segment) if texts[entry] else ():
                target = int(arrays.targets[row, place])
                total -= 0.0 if target == rows.pad_id else float(chances[place, target])
            entry += 1
    (score,) = score_texts(net, corpus, "cpu")
    assert score.nats == pytest.approx(total, rel=1e-10)


def test_scores_come_back_for_the_same_weights_only(tmp_path: Path) -> None:
    score = TextScore("lines", "validation", 3, 40, 37, 80.5, 3.1, 2.9, 3.3)
    assert read_scores(tmp_path) is None
    write_scores(tmp_path, "abc", [score])
    assert read_scores(tmp_path) == read_scores(tmp_path, "abc") == [score]
    assert read_scores(tmp_path, "def") is None
    (tmp_path / "texts.json").write_text("{")
    assert read_scores(tmp_path) is None
