"""Hold a plan against the device at hand: a few real steps, and the most that they held."""

import time
from contextlib import nullcontext
from dataclasses import replace

import torch

from data.batch import Batch
from data.roles import Role
from eval.machine import synchronize
from eval.speed_memory import peak_memory
from models.backbone import Backbone
from models.kernels import use_kernels

from .objective import Objective
from .optim import RoleOptimizer
from .plan_step import StepAsked
from .planning import Plan
from .stage import set_trainable

STEPS = 3


def check_plan(plan: Plan) -> list[str]:
    """Train a few steps of one GPU's part of the run and say how far the plan was off.

    Raises:
        ValueError: there is no such device here.
    """
    device = "cpu" if plan.settings.gpu == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "check=true trains a few steps on a GPU, and torch sees none: nothing was run (gpu=cpu "
            "checks the plan of this machine's CPU)"
        )
    if plan.layout.world > 1:
        raise ValueError(f"check=true is of one GPU, and world={plan.layout.world}: set world=1")
    use_kernels(plan.settings.flash_attn)
    held, seconds = measure(plan.work.asked, device)
    lines = [f"measured: {held:,} bytes at most, {seconds:.4g} s a micro-batch with its step"]
    if plan.memory is not None:
        lines.append(f"planned: {plan.memory.total:,.0f} bytes ({plan.memory.total / held:.1%})")
    work = plan.work
    run = (work.flops + work.rerun_flops) / work.accumulate + plan.muon.flops
    reached = run / seconds / plan.gpu.rate(work.bf16)
    return [*lines, f"peak_fraction={reached:.3f} is what this device reached"]


def measure(asked: StepAsked, device: str, steps: int = STEPS) -> tuple[int, float]:
    """Return the most bytes held over some real steps, and the seconds of the last one."""
    seconds = [0.0]

    def run() -> None:
        objective, optimizer = _ready(asked, device)
        for _ in range(steps):
            synchronize(device)
            began = time.perf_counter()
            real_step(objective, optimizer, asked, device)
            synchronize(device)
            seconds[0] = time.perf_counter() - began

    return peak_memory(run, device), seconds[0]


def _ready(asked: StepAsked, device: str) -> tuple[Objective, RoleOptimizer]:
    with torch.device(device):
        backbone = Backbone(asked.backbone)
    backbone.depth.counts = lambda draws: list(asked.loops)
    if asked.recompute:
        backbone.recompute_blocks()
    set_trainable(backbone, list(asked.trainable))
    objective = Objective(backbone, mask_id=0)
    return objective, RoleOptimizer(objective, asked.optim)


def real_step(
    objective: Objective, optimizer: RoleOptimizer, asked: StepAsked, device: str
) -> None:
    """One step, as Lightning's automatic optimisation orders it."""
    batch = _batch(asked).to(device)
    draws = replace(asked.draws, places_B=batch.places_B)
    cast = torch.autocast(device, torch.bfloat16) if asked.bf16 else nullcontext()
    with cast:
        loss = objective(batch, asked.objective, draws)
    optimizer.zero_grad()
    loss.backward()
    if asked.clip:
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()


def _batch(asked: StepAsked) -> Batch:
    shape = (asked.rows, asked.context)
    tokens = torch.randint(asked.backbone.vocab_size, shape)
    return Batch(
        tokens_BT=tokens,
        targets_BT=tokens.roll(-1, dims=1),
        segments_BT=torch.zeros_like(tokens),
        roles_BT=torch.full_like(tokens, int(Role.TRACE)),
        loss_BT=torch.ones(shape),
        denominator=torch.tensor(float(tokens.numel())),
        places_B=torch.arange(asked.rows),
    )
