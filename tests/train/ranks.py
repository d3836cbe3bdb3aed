"""What each of several processes does in the tests of sharding; `train_steps` also runs alone.

    python -m tests.train.ranks CHECK FOLDER RANK WORLD

Each process leaves what it found in FOLDER/CHECK-RANK.json.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.batch import Batch
from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.draws import Draws
from models.depth.looped import LoopedDepthConfig
from models.latent.chunk import ChunkConfig
from models.latent.feedback import FeedbackConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.rwkv7 import RWKV7Config
from models.mlps.moe import MoEConfig
from models.routing import routers
from tests.train.runs import ROOT, VECTORS, environment, small_backbone
from train.objective import Objective
from train.objective_config import ObjectiveConfig
from train.optim import OptimConfig, RoleOptimizer
from train.sharding import shard, whole

ROWS, LENGTH, VOCABULARY, STEPS = 12, 16, 32, 4
THOUGHTS = [0, 0, 0, 3, 1, 2, 0, 5, 0, 0, 1, 0]
"""Of each row; at two processes one has all of the deepest, at four one has none."""


def looped(**changes: Any) -> LoopedDepthConfig:
    return LoopedDepthConfig(prelude=1, coda=1, **{"loops": 3, **changes})


CASES: dict[str, BackboneConfig] = {
    "transformer": small_backbone(num_layers=2, tie_embeddings=True),
    "hybrid": small_backbone(
        num_layers=2,
        layout="gdn attn",
        mixers={"gdn": GatedDeltaNetConfig(), "attn": AttentionConfig()},
    ),
    "looped": small_backbone(num_layers=3, depth=looped(count="uniform", min_loops=1, max_loops=3)),
    "routed": small_backbone(num_layers=3, depth=looped(route="token")),
    "experts": small_backbone(num_layers=1, mlp=MoEConfig(num_experts=4)),
    "thinking": small_backbone(latent=FeedbackConfig(projection="mlp")),
    "thinking over loops": small_backbone(
        latent=FeedbackConfig(projection="mlp"), depth=LoopedDepthConfig(start="noise")
    ),
    "vectors": small_backbone(latent=VECTORS),
    "chunks": small_backbone(latent=ChunkConfig(ratio=2)),
    "handing on": small_backbone(
        num_layers=4,
        layout="early late",
        mixers={"early": RWKV7Config(), "late": RWKV7Config()},
    ),
}
"""Small backbones of which each asks something else of sharding."""
SOME = ("transformer", "hybrid", "looped")


def built(case: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Objective:
    config = replace(CASES[case], vocab_size=VOCABULARY, mlp_hidden=24)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Objective(Backbone(config).to(dtype), mask_id=0)


def global_batch(step: int) -> Batch:
    """Rows with thoughts here and there: most processes have fewer thoughts and targets.

    In the last step half of the rows are padding, so that a process has nothing else.
    """
    generator = torch.Generator().manual_seed(step)
    tokens_BT = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=generator)
    roles_BT = torch.ones_like(tokens_BT)
    for row, count in enumerate(THOUGHTS):
        roles_BT[row, 6 : 6 + count] = 3
    loss_BT = (torch.arange(LENGTH) >= LENGTH - 1 - torch.arange(ROWS)[:, None]).float()
    loss_BT = loss_BT * (torch.arange(ROWS)[:, None] > 0)
    segments_BT = torch.zeros_like(tokens_BT)
    segments_BT[:, 14:] = 1
    if step == STEPS - 1:
        roles_BT[ROWS // 2 :], segments_BT[ROWS // 2 :], loss_BT[ROWS // 2 :] = 0, -1, 0
    targets_BT = tokens_BT.roll(-1, dims=1)
    places_B = torch.arange(ROWS)
    return Batch(tokens_BT, targets_BT, segments_BT, roles_BT, loss_BT, loss_BT.sum(), places_B)


def part_of(batch: Batch, rank: int, world: int) -> Batch:
    own = torch.arange(ROWS).view(world, -1)[rank]
    names = ("tokens_BT", "targets_BT", "segments_BT", "roles_BT", "loss_BT", "places_B")
    return replace(batch, **{name: getattr(batch, name)[own] for name in names})


def train_steps(
    objective: Objective, rank: int = 0, world: int = 1, optim: str = "adamw", steps: int = STEPS
) -> list[float]:
    """Train; return the global losses and gradient norms of all steps."""
    optimizer = RoleOptimizer(objective, OptimConfig(kind=optim, lr=0.01, adam_lr=0.01))
    found: list[float] = []
    for step in range(steps):
        draws = Draws(0, 0, step, steps, ROWS, torch.arange(ROWS).view(world, -1)[rank])
        batch = part_of(global_batch(step), rank, world)
        loss = objective(batch, ObjectiveConfig(chunk_size=5), draws, share=1 / world)
        (world * loss).backward()
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        total = summed(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        for router in routers(objective):
            router.load_E.copy_(summed(router.load_E))
            router.balance()
        found += [float(total), float(norm)]
    return found


def summed(x: Tensor) -> Tensor:
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


class CountedGathers(TorchDispatchMode):
    """Counts the all-gathers of what runs inside."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "c10d._allgather_base_" in str(func)
        return func(*args, **(kwargs or {}))


def losses_of(mesh: DeviceMesh, rank: int, cases: tuple[str, ...]) -> dict[str, list[float]]:
    found = {}
    for case in cases:
        objective = built(case)
        shard(objective, objective.backbone, mesh)
        found[case] = train_steps(objective, rank, dist.get_world_size())
    return found


def gathers_of(mesh: DeviceMesh, rank: int) -> dict[str, list[int]]:
    """All-gathers of a step's forward pass at one to four loops."""
    found: dict[str, list[int]] = {}
    objective = built("looped")
    shard(objective, objective.backbone, mesh)
    batch = part_of(global_batch(0), rank, dist.get_world_size())
    for loops in range(1, 5):
        with CountedGathers() as counted:
            objective(batch, ObjectiveConfig(), None, loops=loops).backward()
        found.setdefault("looped", []).append(counted.count)
    return found


MUON_DTYPES = (torch.float32, torch.float64)


def muon_apart(mesh: DeviceMesh, dtype: torch.dtype) -> float:
    """How far weights are from those of one process's Muon, after the same gradients."""
    sharded, plain = built("looped", dtype=dtype), built("looped", dtype=dtype)
    shard(sharded, sharded.backbone, mesh)
    settings = OptimConfig(lr=0.02, weight_decay=0.1)
    optimizers = [RoleOptimizer(each, settings) for each in (sharded, plain)]
    generator = torch.Generator().manual_seed(1)
    pairs = list(zip(sharded.parameters(), plain.parameters(), strict=True))
    for _ in range(3):
        for mine, theirs in pairs:
            theirs.grad = torch.randn(theirs.shape, generator=generator, dtype=dtype)
            assert isinstance(mine, DTensor)
            mine.grad = distribute_tensor(theirs.grad, mine.device_mesh, mine.placements)
        for optimizer in optimizers:
            optimizer.step()
    return max(float((whole(mine) - theirs).abs().max()) for mine, theirs in pairs)


def losses(folder: Path, rank: int, world: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (world,))
    found: dict[str, Any] = {"losses": losses_of(mesh, rank, tuple(CASES))}
    found["gathers"] = gathers_of(mesh, rank)
    shape = (2, world // 2) if world % 2 == 0 else (world, 1)
    hybrid = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    found["replicas"] = losses_of(hybrid, rank, ("transformer",))
    objective = built("looped")
    objective.backbone.recompute_blocks()
    shard(objective, objective.backbone, mesh)
    found["recomputed"] = train_steps(objective, rank, world)
    for name, muon_mesh in (("muon", mesh), ("muon, replicas", hybrid)):
        found[name] = {str(dtype): muon_apart(muon_mesh, dtype) for dtype in MUON_DTYPES}
    return found


CHECKS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {"losses": losses}


def run_together(check: str, folder: Path, world: int) -> list[dict[str, Any]]:
    """Run a check in so many processes; return what each found."""
    command = [sys.executable, "-m", "tests.train.ranks", check, str(folder)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world)], env=environment(), cwd=ROOT, stderr=subprocess.PIPE
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)
    return [json.loads((folder / f"{check}-{rank}.json").read_text()) for rank in range(world)]


def main(check: str, folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{check}-store", rank=rank, world_size=world
    )
    found = CHECKS[check](folder, rank, world)
    (folder / f"{check}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
