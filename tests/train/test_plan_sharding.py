"""What a plan says of sharded steps, against what they run and send in a group that isn't there.

Every operator of the first process runs; what it sends is read off its calls.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import Backbone
from tests.train.test_plan_memory import BACKBONES
from train.muon import ShardedMuon
from train.optim import OptimConfig, hidden_matrices
from train.parallel_config import ParallelConfig
from train.plan_muon import MuonWork, muon_work
from train.plan_settings import layout_of
from train.plan_shards import fake_mesh, unit_sizes
from train.plan_time import traffic_of
from train.sharding import shard
from train.strategy import ShardedStrategy


class Calls(TorchDispatchMode):
    """Notes the collectives of what runs inside, and what the first process sends to others."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[int] = []
        self.gathers: list[int] = []
        self.scatters: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        name = str(func)
        if "alltoall_base" in name:
            whole, sends = args[1], args[4]
            self.exchanges.append((whole.numel() - sends[0]) * whole.element_size())
        for kind, found in (("allgather", self.gathers), ("reduce_scatter", self.scatters)):
            if kind in name:
                whole = args[0] if kind == "allgather" else args[1]
                found.append(whole.numel() * whole.element_size())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("shards", [2, 3, 16])
def test_muon_runs_and_sends_what_was_planned(name: str, shards: int) -> None:
    config = BACKBONES[name]
    planned = muon_work(config, OptimConfig(), shards)
    backbone = Backbone(config)
    with fake_mesh(shards) as mesh:
        assert mesh is not None
        shard(backbone, backbone, mesh)
        weights = [weight for _, weight in hidden_matrices(backbone)]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        with FlopCounterMode(display=False) as flops, Calls() as calls:
            ShardedMuon(weights, adjust_lr_fn="original").step()
    assert planned.flops == flops.get_total_flops()
    assert planned.sent == sum(calls.exchanges)
    assert planned.collectives == len(calls.exchanges)


def test_muon_on_whole_matrices_runs_all_products_and_sends_nothing() -> None:
    config = BACKBONES["transformer"]
    assert muon_work(config, OptimConfig(kind="adamw"), 1) == MuonWork()
    whole, parts = (muon_work(config, OptimConfig(), shards) for shards in (1, 2))
    assert whole.sent == 0 < parts.sent
    assert parts.flops == pytest.approx(whole.flops / 2, rel=0.25)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_cut_up_in_every_micro_batch(accumulate: int) -> None:
    """Under Lightning's accumulation, which holds back only DDP."""
    config = replace(BACKBONES["looped"], tie_embeddings=True)
    settings = ParallelConfig(strategy="fsdp2", devices=2)
    gather, scatter, *_ = traffic_of(
        unit_sizes(config, 2), layout_of(settings), accumulate, MuonWork()
    )
    strategy = ShardedStrategy(settings)
    backbone = Backbone(config)
    with fake_mesh(2) as mesh, Calls() as calls:
        assert mesh is not None
        shard(backbone, backbone, mesh)
        tokens_BT = torch.zeros(1, 4, dtype=torch.int64)
        for part in range(accumulate):
            with _block_parallel_sync_behavior(strategy, block=part < accumulate - 1):
                output = backbone(tokens_BT, torch.zeros_like(tokens_BT), loops=2)
                output.hidden_BTD.sum().backward()
            gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
            assert gradients and all(isinstance(gradient, DTensor) for gradient in gradients)
    assert len(calls.gathers) == gather.calls and sum(calls.gathers) / 2 == gather.sent
    assert len(calls.scatters) == scatter.calls and sum(calls.scatters) / 2 == scatter.sent
