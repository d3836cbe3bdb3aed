"""Looped backbones are watched while they train: their health, and depths beside their own."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.depth.depth import Trajectory
from models.depth.health import loop_health
from models.depth.looped import LoopedDepthConfig
from tests.train.runs import metrics, small_backbone, train
from train.config import RunConfig

HEALTH = ("state_norm", "loop_residual", "token_correlation", "spectral_bound")
DEPTHS = ("validation_loss_fewer_loops", "validation_loss_more_loops")


@pytest.mark.parametrize("injection", ["add", "none", "diagonal"])
def test_a_looped_run_writes_its_health(run_at: Callable[..., RunConfig], injection: str) -> None:
    depth = LoopedDepthConfig(loops=3, injection=injection)
    rows = metrics(train(run_at(backbone=small_backbone(depth=depth))))
    watched = {name: [row[name] for row in rows] for name in (*HEALTH, *DEPTHS)}
    for name, values in watched.items():
        expected = [] if (injection, name) == ("none", "spectral_bound") else [4, 8, 12]
        assert [step for step, value in enumerate(values, start=1) if value] == expected, name
    last = {name: float(values[-1] or 0) for name, values in watched.items()}
    assert 0 < last["state_norm"] < 100 and 0 < last["loop_residual"] < 2
    assert -1 <= last["token_correlation"] <= 1
    assert last["validation_loss_fewer_loops"] != float(rows[-1]["validation_loss"])
    assert 0 <= last["spectral_bound"] <= 1


def test_an_unlooped_run_has_none(run_at: Callable[..., RunConfig]) -> None:
    row = metrics(train(run_at()))[-1]
    assert row["validation_loss"] and not any(row[name] for name in (*HEALTH, *DEPTHS))


def test_parcae_trains_alike_however_its_batch_is_cut(run_at: Callable[..., RunConfig]) -> None:
    """Counts and noise are a row's own: accumulation changes neither."""
    depth = LoopedDepthConfig(
        loops=3, count="poisson", count_per="sequence", max_loops=5, start="noise"
    )
    config = run_at(backbone=small_backbone(depth=depth))
    whole = metrics(train(config))
    cut = replace(config, parallel=replace(config.parallel, accumulate=2), runs=config.runs + "cut")
    for one, other in zip(whole, metrics(train(cut)), strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert one["loops"] == other["loops"]


def test_health_is_what_it_says() -> None:
    one = torch.tensor([[[3.0, 4.0], [3.0, 4.0], [9.0, 9.0]]])
    two = torch.tensor([[[6.0, 8.0], [-8.0, 6.0], [1.0, 1.0]]])
    segments = torch.tensor([[0, 0, -1]])
    found = loop_health(Trajectory(2, 2, [one, two]), segments)
    assert found["state_norm"] == pytest.approx(10 / math.sqrt(2))
    assert found["loop_residual"] == pytest.approx((5 + math.hypot(11, 2)) / 20)
    assert found["token_correlation"] == pytest.approx(0, abs=1e-6)
    same = loop_health(Trajectory(1, 1, [one[:, :2]]), None)
    assert same["token_correlation"] == pytest.approx(1) and "loop_residual" not in same
    assert loop_health(Trajectory(1, 1), None) == {}
