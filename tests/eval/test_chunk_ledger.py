"""What chunked answers cost: where their chunks began is noted as they are written, and counted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.tokenizer import ByteTokenizer
from eval.budget import Budget, fitting
from eval.generate import Generation, Request, generate
from eval.spending import Meter
from models.backbone import Backbone
from models.config import BackboneConfig
from models.latent.chunk import Chunk, ChunkConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig

TOKENIZER = ByteTokenizer()


def backbone(layout: str = "gdn attn", **settings: Any) -> Backbone:
    config = BackboneConfig(
        dim=16,
        num_layers=2,
        layout=layout,
        mixers={
            "attn": AttentionConfig(num_heads=2, conv_width=3),
            "gdn": GatedDeltaNetConfig(num_heads=2, chunk_size=8),
        },
        latent=ChunkConfig(**settings),
        mlp_hidden=24,
        vocab_size=TOKENIZER.vocab_size,
    )
    torch.manual_seed(0)
    made = Backbone(config).double().eval()
    for weight in made.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.5)
    return made


def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(97, 123, length).tolist(), index, 0, limit)
        for index, (length, limit) in enumerate(rng.integers(1, 12, (7, 2)))
    ]


def begins_of(made: Backbone, sample: Generation, prompt: list[int]) -> list[int]:
    """Where chunks begin, from one pass over all that was read."""
    read = torch.tensor([prompt + sample.tokens[:-1]])
    found = made(read).trajectory.chunks_BT
    assert found is not None
    return found[0].tolist()


@pytest.mark.parametrize(
    "settings", [{}, {"levels": 2, "ratio": 2}, {"router": "stride", "ratio": 3}], ids=str
)
def test_continuous_batching_notes_where_chunks_begin(settings: dict[str, Any]) -> None:
    made, asked = backbone(**settings), requests()
    budget = Budget(samples=2, temperature=1.0)
    together = generate(made, asked, budget, TOKENIZER, batch_size=6, seed=3)
    for request, samples in zip(asked, together, strict=True):
        assert generate(made, [request], budget, TOKENIZER, batch_size=2, seed=3) == [samples]
        for sample in samples:
            assert sample.chunks == begins_of(made, sample, list(request.prompt))


def test_the_ledger_counts_chunks_by_hand() -> None:
    """Words: two in the prompt of 7; the answers begin one more, and none."""
    made = backbone("attn", router="space", encoder="attn")
    latent, depth = made.latent, made.depth
    assert isinstance(latent, Chunk)
    (level,) = latent.each()
    asked = Request(list(b"ab cd. "), 0, 0, 9)
    (drawn,) = generate(made, [asked], Budget(), TOKENIZER)[0]
    assert drawn.chunks is not None and drawn.chunks[:7] == [1, 0, 0, 1, 0, 0, 0]

    first = Generation(7, list(b"e f"), chunks=[1, 0, 0, 1, 0, 0, 0, 1, 0])
    second = Generation(7, list(b"  g "), chunks=[1, 0, 0, 1, 0, 0, 0, 0, 0, 1])
    spent = Meter(made, None).spend([first, second])
    assert spent.chunks == 2 + 1 + 1
    # Two blocks a byte (encoder, decoder), two a chunk; 7 bytes, then 2 and 3 are read.
    assert spent.block_calls == 2 * (7 + 2 + 3) + 2 * 4
    # The prompt at once; the first then reads a chunk and a byte, the second two bytes and a chunk.
    assert spent.serial_steps == 4 + max(4 + 2, 2 + 2 + 4)
    levels = [level.cost(n).flops for n in (*range(1, 8), 8, 9, 8, 9, 10)]
    chunks = [depth.cost(n, 1).flops for n in (1, 2, 3, 3)]
    readouts = 1 + 2 + 3
    expected = sum(levels) + sum(chunks) + readouts * made.readout_flops
    assert spent.model_flops == pytest.approx(expected)
    ends = level.cost(9).state_bytes + level.cost(10).state_bytes
    assert spent.state_bytes == ends + 2 * depth.cost(3, 1).state_bytes
    assert spent.latent_steps == 0 and spent.mean_loops is None


def test_chunks_are_not_stopped_early() -> None:
    made = backbone()
    assert fitting([Budget(stop="entropy:1")], made) == []
