"""Every `depth=` choice trains, over a Transformer and a hybrid, and answers by generation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from data.batch import Batch
from data.corpus import Corpus
from eval.budget import Budget
from eval.generate import Request, generate
from models.backbone import Backbone
from models.depth.draws import Draws
from models.sizing import resolve
from train.objective import Objective
from train.schema import register_schemas, to_config

CHOICES = sorted(path.stem for path in (Path("configs") / "depth").glob("*.yaml"))


@pytest.mark.parametrize("layout", ["attn", "gdn mamba2 attn"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_depth_trains_and_generates(choice: str, layout: str, corpus_path: Path) -> None:
    register_schemas()
    mixers = [f"+mixer@backbone.mixers.{name}={name}" for name in ("gdn", "mamba2")]
    with initialize_config_module("configs", version_base="1.3"):
        overrides = [f"depth={choice}", f"backbone.layout={layout}", *mixers]
        shape = ["backbone.num_layers=3", "backbone.dim=16", "backbone.head_dim=8"]
        config, _ = to_config(compose("train", [*overrides, *shape, "logger=none"]))
    corpus = Corpus.open(corpus_path)
    rows = corpus.split("train")
    indices = np.arange(2)
    batch = Batch.from_rows(rows.read(indices), rows.loss_sum(indices))
    torch.manual_seed(0)
    net = Objective(Backbone(resolve(config.backbone, corpus.tokenizer.vocab_size)))
    stage = config.stages[0]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for step in range(8):
        loss = net(batch, stage.objective, Draws(0, 0, step, 8, rows=2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    requests = [Request(corpus.tokenizer.encode("e5 e2"), index, 0, 3) for index in range(3)]
    written = generate(net.backbone.eval(), requests, Budget(), corpus.tokenizer, batch_size=2)
    assert all(1 <= len(sample.tokens) <= 4 for samples in written for sample in samples)
