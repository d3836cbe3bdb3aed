"""The loss: chunked or not, weighted, cut or whole, it is one number with one gradient."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from data.corpus import Corpus
from models.backbone import Backbone, Output
from models.latent.latent import Readout
from tests.train.runs import losses, small_backbone, train
from train.config import ParallelConfig, RunConfig
from train.loss import position_losses, target_places
from train.objective import Objective
from train.objective_config import ObjectiveConfig
from train.optim import OptimConfig

B, T, D, V = 3, 10, 8, 12


def problem() -> tuple[torch.nn.Linear, Tensor, Tensor, Tensor]:
    """A readout, hidden states, targets, and weights of which some are 0."""
    torch.manual_seed(0)
    weights_BT = torch.rand(B, T, dtype=torch.float64) * (torch.rand(B, T) < 0.7)
    hidden_BTD = torch.randn(B, T, D, dtype=torch.float64)
    return torch.nn.Linear(D, V).double(), hidden_BTD, torch.randint(V, (B, T)), weights_BT


def by_hand(logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float) -> Tensor:
    """The definition: every position's logits at once."""
    log_normaliser = logits.logsumexp(-1)
    picked = logits.gather(-1, targets[..., None])[..., 0]
    return (weights * (log_normaliser - picked + z_loss * log_normaliser**2)).sum()


def weighted(
    hidden: Tensor, readout: Readout, targets: Tensor, weights: Tensor, size: int, z_loss: float = 0
) -> Tensor:
    """What the objective does with a batch's hidden states."""
    places = target_places(weights)
    own = hidden.flatten(0, 1)[places], targets.flatten()[places], weights.flatten()[places]
    return (position_losses(own[0], readout, own[1], size, z_loss) * own[2]).sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 1000])
def test_chunks_change_nothing(chunk_size: int, z_loss: float) -> None:
    """In float64, with gradients."""
    readout, hidden, targets, weights = problem()
    results = []
    for loss in (
        lambda x: by_hand(readout(x), targets, weights, z_loss),
        lambda x: weighted(x, readout, targets, weights, chunk_size, z_loss),
    ):
        x = hidden.clone().requires_grad_()
        value = loss(x)
        gradients = torch.autograd.grad(value, [x, readout.weight, readout.bias])
        results.append([value, *gradients])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_positions_without_weight_are_never_read_out() -> None:
    readout, hidden, targets, weights = problem()
    read: list[int] = []

    def counted(x: Tensor) -> Tensor:
        read.append(len(x))
        return readout(x)

    with torch.no_grad():
        weighted(hidden, counted, targets, weights, 4)
    kept = int((weights > 0).sum())
    assert sum(read) == kept < B * T
    assert max(read) == 4


@pytest.fixture(scope="module")
def batch(corpus_path: Path) -> Batch:
    rows = Corpus.open(corpus_path).split("train")
    indices = np.linspace(0, rows.num_rows - 1, 4, dtype=int)
    return Batch.from_rows(rows.read(indices), rows.loss_sum(indices))


def objective(corpus_path: Path, kind: type[Backbone] = Backbone) -> Objective:
    vocab_size = Corpus.open(corpus_path).tokenizer.vocab_size
    torch.manual_seed(0)
    return Objective(kind(small_backbone(vocab_size=vocab_size, mlp_hidden=8)))


def test_the_untrained_loss_is_the_log_of_the_vocabulary(corpus_path: Path, batch: Batch) -> None:
    """The head starts at zero, and the weights add up to the denominator."""
    net = objective(corpus_path)
    loss = net(batch, ObjectiveConfig(), None)
    assert loss.item() == pytest.approx(torch.tensor(net.backbone.config.vocab_size).log().item())


def test_the_loss_is_the_weighted_mean(corpus_path: Path, batch: Batch) -> None:
    net = objective(corpus_path)
    torch.nn.init.normal_(net.backbone.head.weight)
    out = net.backbone(batch.tokens_BT, batch.segments_BT)
    logits = out.readout(out.hidden_BTD).flatten(0, 1)
    each = F.cross_entropy(logits, batch.targets_BT.flatten(), reduction="none")
    expected = (each * batch.loss_BT.flatten()).sum() / batch.loss_BT.sum()
    torch.testing.assert_close(net(batch, ObjectiveConfig(), None), expected)


def test_without_targets_there_is_nothing_to_learn(corpus_path: Path, batch: Batch) -> None:
    net = objective(corpus_path)
    for denominator in (batch.denominator, torch.zeros(())):
        empty = replace(batch, loss_BT=torch.zeros_like(batch.loss_BT), denominator=denominator)
        loss = net(empty, ObjectiveConfig(z_loss=0.1), None)
        net.zero_grad()
        loss.backward()
        assert loss.item() == 0
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        assert gradients and not any(gradient.any() for gradient in gradients)


class WithAuxiliary(Backbone):
    """Adds the mean length of the hidden states, a mean over rows."""

    def forward(self, *args, **kwargs) -> Output:
        out = super().forward(*args, **kwargs)
        out.losses["length"] = self.embedding.weight[args[0]].square().sum(-1).mean()
        return out


def test_auxiliary_losses_count_by_the_share_of_rows(corpus_path: Path, batch: Batch) -> None:
    """So they are the same over parts of a batch, and in full at its size of one part."""
    net, config = objective(corpus_path, WithAuxiliary), ObjectiveConfig()
    parts = [
        replace(
            batch,
            **{
                name: getattr(batch, name)[rows]
                for name in ("tokens_BT", "targets_BT", "segments_BT", "roles_BT", "loss_BT")
            },
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert parts[0].loss_BT.sum() != parts[1].loss_BT.sum()
    whole = net(batch, config, None)
    cut = torch.stack([net(part, config, None, share=0.5) for part in parts]).sum()
    torch.testing.assert_close(cut, whole)
    plain = net(batch, config, None, share=0.0)
    length = net.backbone.embedding.weight[batch.tokens_BT].square().sum(-1).mean()
    torch.testing.assert_close(whole - plain, length, rtol=1e-4, atol=1e-6)


def test_accumulation_leaves_auxiliary_losses_alone(
    run_at: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.module.Backbone", WithAuxiliary)
    config = run_at(optim=OptimConfig("adamw", lr=0.01))
    run = train(config)
    whole = losses(run)
    shutil.rmtree(run)
    train(replace(config, parallel=ParallelConfig(accelerator="cpu", accumulate=4)))
    assert losses(run) == pytest.approx(whole, rel=1e-5)
