"""A plan's memory against what real steps hold, by torch's own record of allocations."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra import compose, initialize_config_module
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from data.make import make_corpus
from eval.speed_memory import peak_memory
from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.draws import Draws
from models.depth.looped import LoopedDepthConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mlps.moe import MoEConfig
from models.sizing import resolve
from tests.train.conftest import RunFactory
from tests.train.runs import SMALL, launch, small_backbone, train, with_trainer
from train.objective import Objective
from train.objective_config import ObjectiveConfig
from train.optim import OptimConfig, RoleOptimizer
from train.plan_check import measure, real_step
from train.plan_memory import GATHERED, Memory, largest_rows, memory_of
from train.plan_muon import muon_work
from train.plan_settings import Layout, PlanSettings
from train.plan_shards import unit_sizes
from train.plan_step import Held, NotPredicted, StepAsked, held_by_phases, most_held
from train.plan_tracker import GRADIENTS, OPTIMIZER, WEIGHTS
from train.planning import make_plan
from train.schema import register_schemas, to_config
from train.sharding import shard_units

NEAR = 0.10
MIXERS = {"attn": AttentionConfig(), "gdn": GatedDeltaNetConfig()}
LOOPED = LoopedDepthConfig(loops=3, count="uniform", min_loops=1, max_loops=3, prelude=1)


def backbone(**changes: object) -> BackboneConfig:
    settings = {"dim": 64, "head_dim": 32, "num_layers": 2, "mixers": MIXERS, **changes}
    return resolve(small_backbone(**settings), 256)


BACKBONES = {
    "transformer": backbone(layout="attn"),
    "gdn_hybrid": backbone(layout="gdn attn"),
    "looped": backbone(layout="attn", depth=LOOPED),
}


def step(config: BackboneConfig, **changes: object) -> StepAsked:
    settings: dict[str, object] = {
        "backbone": config,
        "optim": OptimConfig(),
        "objective": ObjectiveConfig(chunk_size=96),
        "draws": Draws(0, 0, 0),
        "context": 128,
        "rows": 2,
        "loops": (3,),
        "cuda": False,
    }
    return StepAsked(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def held(asked: StepAsked) -> Held:
    return most_held(held_by_phases(asked), {})


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("choice", ["plain", "bf16, recomputed, adamw"])
def test_a_step_holds_what_was_planned(name: str, choice: str) -> None:
    asked = step(BACKBONES[name])
    if choice != "plain":
        asked = replace(asked, bf16=True, recompute=True, optim=OptimConfig(kind="adamw"))
    seen, _ = measure(asked, "cpu", steps=2)
    planned = held(asked)
    assert sum(planned.values()) == pytest.approx(seen, rel=NEAR)
    assert planned[WEIGHTS] == 4 * sum(unit.whole for unit in unit_sizes(asked.backbone, 1))


def test_a_run_of_lightning_holds_what_was_planned(run_at: RunFactory) -> None:
    """With its own loop, clipping and callbacks, on rows that are all targets."""
    run = with_trainer(run_at(backbone=BACKBONES["transformer"]), max_steps=3, validate_every=0)
    run.backbone = replace(run.backbone, vocab_size=0, mlp_hidden=None)
    run.data.loss = replace(run.data.loss, question=1.0)
    train(with_trainer(run, max_steps=1))  # the corpus, and what is imported on the way
    held = peak_memory(lambda: train(run), "cpu")
    plan = make_plan(run, PlanSettings(gpu="cpu"))
    assert plan.memory is not None
    assert plan.memory.total == pytest.approx(held, rel=NEAR)


def test_parts_of_a_step_are_what_they_are_called() -> None:
    asked = step(BACKBONES["transformer"])
    units = unit_sizes(asked.backbone, 1)
    whole = sum(unit.whole for unit in units)
    matrices = sum(unit.whole_matrices for unit in units)
    planned = held(replace(asked, rows=1, context=1))
    assert planned[GRADIENTS] == planned[WEIGHTS] == 4 * whole
    counters = 4 * (len(list(Backbone(asked.backbone).parameters())))
    assert 0 <= planned[OPTIMIZER] - 4 * (2 * whole - matrices) <= counters
    more = held(replace(asked, recompute=True))
    assert sum(more.values()) < sum(held(asked).values())


def test_a_gpu_keeps_half_as_much_of_activations_and_no_probabilities() -> None:
    asked = step(BACKBONES["transformer"], context=512)
    on_cpu = held(asked)
    on_gpu = held(replace(asked, cuda=True, bf16=True))
    flash = held(replace(asked, cuda=True, bf16=True, flash_attn=True))
    assert on_gpu["feed-forward"] < 0.7 * on_cpu["feed-forward"]
    assert flash["mixers"] < on_gpu["mixers"] < 0.7 * on_cpu["mixers"]


def test_sharding_divides_what_belongs_to_weights_alone() -> None:
    asked = step(BACKBONES["looped"])
    units = unit_sizes(asked.backbone, 4)
    assert [unit.name for unit in units] == ["depth.blocks.0", "depth", "root"]
    one = memory_of(asked, unit_sizes(asked.backbone, 1), Layout("single", 1, 1, 1))
    four = memory_of(asked, units, Layout("fsdp2", 4, 1, 4))
    assert four.parts[WEIGHTS] == pytest.approx(one.parts[WEIGHTS] / 4, rel=0.02)
    assert four.parts[OPTIMIZER] == pytest.approx(one.parts[OPTIMIZER] / 4, rel=0.05)
    assert four.parts["mixers"] == one.parts["mixers"]
    assert four.parts[GATHERED] == 4 * sum(unit.whole for unit in units)
    # Of earlier micro-batches a process keeps its shards of gradients, and no more.
    more = memory_of(replace(asked, accumulates=True), units, Layout("fsdp2", 4, 1, 4))
    assert four.total <= more.total <= four.total + 1.05 * four.parts[WEIGHTS]


def test_a_unit_that_is_large_is_held_twice_on_the_way_forward() -> None:
    """As FSDP2 received it, and unpacked."""
    asked = step(backbone(dim=256, layout="attn", depth=LOOPED))
    units = unit_sizes(asked.backbone, 4)
    _, core, root = (unit.whole for unit in units)
    memory = memory_of(asked, units, Layout("fsdp2", 4, 1, 4))
    assert memory.parts[GATHERED] == 4 * (root + 2 * core)


@pytest.mark.parametrize("limit", [50, 100, 101, 199, 200, 1999])
def test_the_largest_batch_fits_and_the_next_one_does_not(limit: float) -> None:
    def memory(rows: int) -> Memory:
        return Memory({"rows": 97 * rows + rows % 3}, rows)

    found = largest_rows(memory, limit, memory(4), 30)
    assert found == max(n for n in range(31) if n == 0 or memory(n).total <= limit)


def test_what_depends_on_contents_is_not_guessed() -> None:
    moe = resolve(replace(small_backbone(), mlp=MoEConfig(num_experts=4, top_k=2)), 64)
    with pytest.raises(NotPredicted, match="transformer backbone decides by what it reads"):
        held(step(moe))


def _sharded_steps(rank: int, folder: str, asked: StepAsked) -> None:
    """Two steps of one of two real processes, all of them seen by the profiler."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def run() -> None:
        with torch.device("meta"):
            made = Backbone(asked.backbone)
        made.depth.counts = lambda draws: list(asked.loops)
        for unit in [*shard_units(made), made]:
            fully_shard(unit, mesh=mesh)
        made.to_empty(device="cpu")
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        objective = Objective(made, mask_id=0)
        optimizer = RoleOptimizer(objective, asked.optim)
        for _ in range(2):
            real_step(objective, optimizer, asked, "cpu")

    held = peak_memory(run, "cpu")
    Path(folder, f"{rank}.json").write_text(json.dumps(held))
    dist.destroy_process_group()


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["transformer", "looped"])
def test_two_sharded_processes_hold_what_was_planned(name: str, tmp_path: Path) -> None:
    asked = step(replace(BACKBONES[name], num_layers=4))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_sharded_steps, (str(tmp_path), asked), nprocs=2)  # pyright: ignore
    seen = max(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    units = unit_sizes(asked.backbone, 2)
    muon = muon_work(asked.backbone, asked.optim, 2)
    planned = memory_of(asked, units, Layout("fsdp2", 2, 1, 2), muon)
    assert planned.total == pytest.approx(seen, rel=NEAR)


SHAPES = {
    "transformer": ("backbone.dim=64", "data.context=128"),
    "looped": (
        *("backbone.dim=256", "data.context=64", "trainer.rows_per_step=16"),
        "backbone.depth={loops:3,max_loops:null,count:fixed}",
    ),
}
"""Of runs in which activations, or the weights of one unit, are most of what is held."""


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_run_of_two_processes_holds_what_was_planned(
    name: str, strategy: str, tmp_path: Path
) -> None:
    """`python -m train` itself in each of them, on rows that are all targets."""
    command = (
        *("experiment=smoke", *SMALL, f"backbone={name}", "parallel=cpu", "parallel.devices=2"),
        *("backbone.head_dim=32", "backbone.num_layers=4", *SHAPES[name], "data.loss.question=1.0"),
        *("trainer.max_steps=3", "trainer.validate_every=0", f"parallel.strategy={strategy}"),
        *(f"runs={tmp_path / 'runs'}", f"data.root={tmp_path / 'corpora'}"),
    )
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config, _ = to_config(compose("train", list(command)))
    make_corpus(config.data, progress=False)
    together = ("--standalone", "--nproc-per-node=2", "-m", "tests.train.held", str(tmp_path))
    status, _, err = launch("torch.distributed.run", *together, *command, cwd=tmp_path)
    assert status == 0, err
    seen = max(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    memory = make_plan(config, PlanSettings(gpu="cpu")).memory
    assert memory is not None
    assert memory.total == pytest.approx(seen, rel=NEAR)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_holds_what_was_planned(name: str, bf16: bool) -> None:
    wide = replace(BACKBONES[name], dim=1024, mlp_hidden=2736, num_layers=4)
    asked = step(wide, cuda=True, bf16=bf16, context=1024)
    seen, _ = measure(asked, "cuda")
    assert sum(held(asked).values()) == pytest.approx(seen, rel=NEAR)
