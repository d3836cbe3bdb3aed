"""A training step without contents: what it would hold, by part, at the worst moment.

The step is the trainer's own, in its order: the loss of a batch while the last step's gradients are
still there, the gradients dropped, backward, clipping, the optimiser. Backbone, objective and
optimiser are the real ones, run on fake tensors; nothing is allocated, so any size goes.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from data.batch import Batch
from data.roles import Role
from models.backbone import Backbone
from models.block import Block
from models.config import BackboneConfig
from models.depth.draws import Draws
from models.mixer import Mixer
from models.mlps.mlp import MLP
from models.ops.normalization import forget_scalars
from models.ops.rotary import forget_tables

from .objective import Objective
from .objective_config import ObjectiveConfig
from .optim import OptimConfig, RoleOptimizer
from .plan_like_cuda import LikeCuda
from .plan_tracker import BACKWARD, GRADIENTS, OPTIMIZER, STEP, UNREDUCED, WEIGHTS, LiveBytes
from .sharding import shard_units
from .stage import set_trainable

BATCH, LOSS = "batch", "loss and logits"
_PARTS: dict[type[nn.Module], str] = {
    Mixer: "mixers",
    MLP: "feed-forward",
    Block: "residual stream",
    Backbone: "depth and embedding",
    Objective: LOSS,
}


class NotPredicted(ValueError):
    """A step's memory depends on what is read: there is no number without a real run."""


@dataclass(frozen=True)
class StepAsked:
    """What step is planned.

    Attributes:
        backbone: resolved settings.
        optim: the optimiser's.
        objective: the stage's.
        draws: where in the run the step is.
        context: tokens of a row.
        rows: rows of a micro-batch.
        loops: what the step draws: one count, or each row's.
        bf16: autocast.
        cuda: take the way of a GPU.
        flash_attn: flash-attn is installed there.
        recompute: make a block's activations again in the backward pass.
        clip: clip gradients.
        trainable: parts that train; empty is all.
        shares: by how much parts count, where they are sharded (see `LiveBytes`).
        reduced: gradients are cut up as soon as a unit of sharding has all of its own.
        accumulates: gradients of earlier micro-batches are there, and added to.
    """

    backbone: BackboneConfig
    optim: OptimConfig
    objective: ObjectiveConfig
    draws: Draws
    context: int
    rows: int
    loops: tuple[int, ...] = (1,)
    bf16: bool = False
    cuda: bool = True
    flash_attn: bool = False
    recompute: bool = False
    clip: bool = True
    trainable: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    reduced: bool = False
    accumulates: bool = False


Held = dict[str, float]
"""Bytes by part."""
FORWARD = "forward"
"""A step's phases are this, and what the tracker calls `BACKWARD` and `STEP`."""


def held_by_phases(asked: StepAsked) -> dict[str, Held]:
    """Return bytes by part when most are held (as `shares` count them), in each phase of a step.

    Every position counts as a target: where fewer are, the loss holds a little less.

    Raises:
        NotPredicted: what the step runs depends on what the tensors hold.
    """
    _forget_constants()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _held(asked)
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    ) as error:
        what = " ".join(str(error).split())
        raise NotPredicted(
            f"the {asked.backbone.name} backbone decides by what it reads how much it runs "
            f"({what}), so a step's memory can't be told without running one"
        ) from error
    finally:
        _forget_constants()


def _forget_constants() -> None:
    """Let no tensor without contents reach a real step, nor a real one this one."""
    forget_tables()
    forget_scalars()


def _held(asked: StepAsked) -> dict[str, Held]:
    tracker = _Worst(_part_of)
    tracker.shares_of(asked.shares)
    with ExitStack() as stack:
        if asked.cuda:
            like_cuda = LikeCuda(asked.flash_attn)
            stack.enter_context(like_cuda)
            stack.enter_context(like_cuda.in_recomputation())
        stack.enter_context(tracker)
        stack.enter_context(tracker.watch_modules())
        objective = _built(asked)
        tracker.assign(objective.parameters(), WEIGHTS)
        optimizer = _warm(objective, asked, tracker)
        return dict(_step(objective, optimizer, asked, tracker))


def most_held(phases: Mapping[str, Held], shares: Mapping[str, float]) -> Held:
    """Return the phase that holds most, parts counted by their shares."""
    return max(
        phases.values(),
        key=lambda held: sum(size * shares.get(part, 1.0) for part, size in held.items()),
    )


def _built(asked: StepAsked) -> Objective:
    backbone = Backbone(asked.backbone)
    # Drawn beforehand: a random number without contents says nothing.
    backbone.depth.counts = lambda draws: list(asked.loops)
    if asked.recompute:
        backbone.recompute_blocks()
    set_trainable(backbone, list(asked.trainable))
    return Objective(backbone, mask_id=0)


def _warm(objective: Objective, asked: StepAsked, tracker: LiveBytes) -> RoleOptimizer:
    """Return an optimiser that has its averages, and gradients as after a step."""
    optimizer = RoleOptimizer(objective, asked.optim)
    for group in optimizer.param_groups if asked.cuda else ():
        if "foreach" in group:
            group["foreach"] = True  # what torch chooses for real tensors on CUDA
    trained = [p for p in objective.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    units = [*shard_units(objective.backbone), objective.backbone] if asked.reduced else [objective]
    for unit in units:
        _collect_gradients(unit, asked, tracker)
    tracker.assign((p.grad for p in trained if p.grad is not None), GRADIENTS)
    with tracker.owner(STEP):
        optimizer.step()
    states = (x for state in optimizer.state.values() for x in state.values())
    tracker.assign((x for x in states if isinstance(x, Tensor)), OPTIMIZER)
    return optimizer


def _collect_gradients(unit: nn.Module, asked: StepAsked, tracker: LiveBytes) -> None:
    """Say what gradients are as they come: whole until all of a unit's are there, if reduced.

    They are then copied into one tensor, which is sent, and each process keeps its piece, or adds
    it to that of earlier micro-batches.
    """
    mine = [p for p in unit.parameters() if p.requires_grad and not p._post_accumulate_grad_hooks]
    missing = {id(p) for p in mine}
    earlier = {id(p): p.grad for p in mine} if asked.reduced and asked.accumulates else {}

    def arrived(parameter: Tensor) -> None:
        assert parameter.grad is not None
        missing.discard(id(parameter))
        tracker.assign([parameter.grad], UNREDUCED if asked.reduced else GRADIENTS)
        if asked.reduced and not missing:
            gradients = [p.grad for p in mine if p.grad is not None]
            tracker.flash(UNREDUCED, sum(gradient.nbytes for gradient in gradients))
            tracker.assign(gradients, GRADIENTS)
            for p in mine if earlier else ():
                p.grad = earlier[id(p)]

    for parameter in mine:
        parameter.register_post_accumulate_grad_hook(arrived)


def _step(
    objective: Objective, optimizer: RoleOptimizer, asked: StepAsked, tracker: LiveBytes
) -> Iterator[tuple[str, Held]]:
    """One step, as Lightning's automatic optimisation orders it; yield what each phase held."""
    tracker.forget_peak()
    with tracker.owner(BATCH):
        batch = _batch(asked.rows, asked.context)
    cast = torch.autocast("cpu", torch.bfloat16) if asked.bf16 else nullcontext()
    with cast:
        loss = objective(batch, asked.objective, asked.draws)
    yield FORWARD, _parts(tracker)
    # What shards hold of earlier micro-batches is no gradient yet for autograd to add to.
    if asked.reduced or not asked.accumulates:
        optimizer.zero_grad()
    tracker.forget_peak()
    with tracker.owner(BACKWARD):
        loss.backward()
    del loss
    yield BACKWARD, _parts(tracker)
    tracker.forget_peak()
    with tracker.owner(STEP):
        if asked.clip:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    yield STEP, _parts(tracker)


def _parts(tracker: LiveBytes) -> Held:
    return {part: size for part, size in sorted(tracker.peak.items()) if size}


def _batch(rows: int, context: int) -> Batch:
    """Rows that are one document each, every token of which is a target."""
    whole = partial(torch.zeros, rows, context, dtype=torch.int64)
    return Batch(
        tokens_BT=whole(),
        targets_BT=whole(),
        segments_BT=whole(),
        roles_BT=torch.full((rows, context), int(Role.TRACE)),
        loss_BT=torch.ones(rows, context),
        denominator=torch.ones(()),
        places_B=torch.arange(rows),
    )


def _part_of(module: nn.Module) -> str | None:
    return next((part for cls, part in _PARTS.items() if isinstance(module, cls)), None)


class _Worst(LiveBytes):
    """Stands in for what depends on contents, where the worst case is plain."""

    def shares_of(self, shares: Mapping[str, float]) -> None:
        """Count parts by these shares."""
        self._shares = dict(shares)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Every position is a target; the optimiser has counted one step."""
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if func is torch.ops.aten._local_scalar_dense.default and self._owners[-1] == STEP:
            return 1.0
        return func(*args, **kwargs)
