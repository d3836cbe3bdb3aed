"""Sharded over processes, a run learns what one process learns; real ones, over gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.train.conftest import RunFactory
from tests.train.ranks import CASES, built, run_together, train_steps
from tests.train.runs import LOOPED, losses, small_backbone, train
from train.muon import orthogonalise
from train.parallel_config import ParallelConfig
from train.sharding import shard_units


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    return {case: train_steps(built(case)) for case in CASES}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_together("losses", tmp_path_factory.mktemp("two"), 2)


@pytest.mark.multiprocess
@pytest.mark.parametrize("case", CASES)
def test_two_shards_learn_as_one_process(
    case: str, alone: dict[str, list[float]], two: list[dict[str, Any]]
) -> None:
    """Losses and gradient norms, where each process has other targets, thoughts and loads."""
    for found in two:
        assert found["losses"][case] == pytest.approx(alone[case], rel=1e-9)


@pytest.mark.multiprocess
def test_replicas_and_recomputing_change_nothing(
    alone: dict[str, list[float]], two: list[dict[str, Any]]
) -> None:
    """Recomputing not by a bit."""
    for found in two:
        assert found["replicas"]["transformer"] == pytest.approx(alone["transformer"], rel=1e-9)
        assert found["recomputed"] == found["losses"]["looped"]
    for case in ("looped", "experts", "handing on"):
        objective = built(case)
        objective.backbone.recompute_blocks()
        assert train_steps(objective) == alone[case]


@pytest.mark.multiprocess
def test_loops_gather_once_however_many_they_are(two: list[dict[str, Any]]) -> None:
    """Root, prelude, core and coda; forward, and all but the root again for the backward pass."""
    for found in two:
        assert found["gathers"]["looped"] == [7] * 4


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["muon", "muon, replicas"])
def test_sharded_muon_is_muon(kind: str, two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found[kind]["torch.float32"] <= 1e-6
        assert found[kind]["torch.float64"] <= 1e-12


def test_orthogonalising_is_what_torch_does() -> None:
    for shape in ((8, 3), (3, 8), (5, 5)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape)
        muon = torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0)
        muon.step()
        own = -(max(1, shape[0] / shape[1]) ** 0.5) * orthogonalise(parameter.grad).float()
        assert torch.equal(parameter, own)


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", [3, 4])
def test_more_shards_learn_as_one_process(
    world: int, alone: dict[str, list[float]], tmp_path: Path
) -> None:
    for found in run_together("losses", tmp_path, world):
        for case, learnt in found["losses"].items():
            assert learnt == pytest.approx(alone[case], rel=1e-9), case
        assert found["replicas"]["transformer"] == pytest.approx(alone["transformer"], rel=1e-9)
        for kind in ("muon", "muon, replicas"):
            assert found[kind]["torch.float64"] <= 1e-12


def test_one_process_in_shards_learns_as_without(run_at: RunFactory, tmp_path: Path) -> None:
    """What sharding costs is measured so (`eval.speed suite=parallel`)."""
    backbone = small_backbone(num_layers=2, depth=LOOPED)
    alone = train(run_at(backbone=backbone))
    sharded = run_at(backbone=backbone, runs=str(tmp_path / "sharded"))
    sharded.parallel = ParallelConfig(accelerator="cpu", strategy="fsdp2")
    try:
        assert losses(train(sharded)) == pytest.approx(losses(alone), rel=1e-6)
    finally:
        dist.destroy_process_group()


def test_units_are_what_gathers_at_once() -> None:
    def units(case: str) -> list[str]:
        backbone = built(case).backbone
        names = {id(part): name for name, part in backbone.named_modules()}
        return [names[id(unit)] for unit in shard_units(backbone)]

    assert units("transformer") == ["depth.blocks.0", "depth.blocks.1"]
    assert units("looped") == ["depth.blocks.0", "depth.blocks.2", "depth"]
    assert units("thinking") == units("vectors") == []
    chunks = ["latent.levels.0.encoder.blocks.0", "latent.levels.0.decoder.blocks.0"]
    assert units("chunks") == [*chunks, "depth.blocks.0"]
