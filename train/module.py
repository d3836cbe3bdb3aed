"""The Lightning module: thin, and the same for every architecture."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from data.batch import Batch
from models.backbone import Backbone
from models.config import backbone_from_dict
from models.depth.draws import Draws
from models.depth.health import loop_health
from models.routing import routers

from .objective import Objective
from .objective_config import ObjectiveConfig
from .optim import OptimConfig, RoleOptimizer
from .sharding import gathered
from .spike_history import SpikeHistory
from .stage import StagePlan, set_trainable
from .teacher import Teacher


class PretrainModule(L.LightningModule):
    """Trains a backbone through the stages of a run.

    Args:
        backbone: the backbone's resolved settings, as plain data.
        optim: the optimiser's settings.
        plan: the stages.
        seed: keys initialisation and every draw of the run.
        compile_blocks: compile each block.
        corpus_hash: manifest hash of the corpus; kept in checkpoints, for `refuse_other_corpus`.
        rows_per_step: rows of a global batch.
        mask_id: token that stands for what is to be filled in, where a stage fills in.
        teacher: labels what is read, for a latent scheme that is taught.
        recompute_blocks: make what blocks compute again in the backward pass.
        shard: shards the objective over processes, once its weights are drawn; its second argument
            says whether a loop is run again after the loops.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        optim: OptimConfig,
        plan: StagePlan,
        seed: int,
        compile_blocks: bool,
        corpus_hash: str,
        rows_per_step: int,
        mask_id: int,
        teacher: Teacher | None = None,
        recompute_blocks: bool = False,
        shard: Callable[[Objective, bool], None] | None = None,
    ) -> None:
        super().__init__()
        self.backbone_data, self.optim, self.plan = backbone, optim, plan
        self.seed, self.compile_blocks, self.corpus_hash = seed, compile_blocks, corpus_hash
        self.rows_per_step, self.mask_id, self.teacher = rows_per_step, mask_id, teacher
        self.recompute_blocks, self.shard = recompute_blocks, shard
        self.objective: Objective | None = None
        self.spikes, self._left_out = SpikeHistory(), False
        self._entered: int | None = None

    def configure_model(self) -> None:
        """Build the backbone under the run's seed; later calls keep the first one."""
        if self.objective is not None:
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            backbone = Backbone(backbone_from_dict(self.backbone_data))
        if self.compile_blocks:
            backbone.compile_blocks()
        if self.recompute_blocks:
            backbone.recompute_blocks()
        self.objective = Objective(backbone, self.mask_id, self.teacher)
        if self.shard is not None:
            loops_again = any(stage.objective.jacobian for stage in self.plan.stages)
            self.shard(self.objective, loops_again)

    @property
    def net(self) -> Objective:
        """The objective around its backbone, once built."""
        assert self.objective is not None
        return self.objective

    def draws_at(self, step: int, places_B: Tensor | None = None) -> Draws:
        """Return what keys the draws of a step of the run, for these rows of its batch."""
        place = self.plan.place(step)
        where = (place.stage, place.step, place.steps)
        return Draws(self.seed, *where, rows=self.rows_per_step, places_B=places_B)

    def loops_at(self, step: int) -> int:
        """Return the loop count of a step of the run: the largest, where rows have their own."""
        return max(self.net.backbone.depth.counts(self.draws_at(step)))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the stage's parts train when it begins, and when a run resumes within it."""
        place = self.plan.place(self.global_step)
        if place.stage != self._entered:
            stage = self.plan.stages[place.stage]
            set_trainable(self.net.backbone, stage.trainable)
            if stage.fresh_optimizer and place.stage and place.step == 0:
                self._forget_averages()
            self._entered = place.stage

    def _forget_averages(self) -> None:
        """Let the optimiser begin anew; at a resumed border that is what it did before."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, RoleOptimizer)
        optimizer.forget()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the micro-batch's loss, scaled so that Lightning's means give the global one."""
        place = self.plan.place(self.global_step)
        config = self.plan.stages[place.stage].objective
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        draws = self.draws_at(self.global_step, batch.places_B)
        return parts * self.net(batch, config, draws, share=1 / parts)

    def validation_loss(self, batch: Batch, loops: int | None = None) -> float:
        """Return a batch's part of the mean loss on held-out documents, at a loop count.

        Auxiliary losses are left out: it is the backbone's predictions that are scored.
        """
        return self._score(batch, loops, record=False)

    def loop_health(self, batch: Batch) -> dict[str, float]:
        """Measure the loops of a looped backbone on held-out documents; see `models.depth.health`.

        Nothing where nothing is looped.
        """
        depth = self.net.backbone.depth
        if not depth.adjustable:
            return {}
        self._score(batch, None, record=True)
        assert self.net.recorded is not None
        found = loop_health(self.net.recorded, batch.segments_BT.to(self.device))
        self.net.recorded = None
        with gathered(self.net, depth):
            bound = depth.spectral_bound()
        return found if bound is None else found | {"spectral_bound": bound}

    def _score(self, batch: Batch, loops: int | None, record: bool) -> float:
        config = self._last_objective()
        given = {"share": 0.0, "loops": loops, "record": record}
        self.net.eval()
        # Without a backward pass, the root would go on holding its weights whole: its parameters
        # would be others than the optimiser's.
        with torch.no_grad(), gathered(self.net), self.trainer.precision_plugin.val_step_context():
            loss = self.net(batch.to(self.device), config, None, **given)
        self.net.train()
        return float(loss)

    def _last_objective(self) -> ObjectiveConfig:
        """Return the objective of the step that was done last."""
        return self.plan.stages[self.plan.place(self.global_step - 1).stage].objective

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, a pure function of the step."""
        optimizer = RoleOptimizer(self.net, self.optim)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.plan.learning_rate_share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then even out the load of experts and memories over all processes."""
        self._left_out = False
        super().optimizer_step(*args, **kwargs)
        for router in routers(self.net):
            if self._left_out:
                router.load_E.zero_()
                continue
            router.load_E.copy_(self.trainer.strategy.reduce(router.load_E, reduce_op="sum"))
            router.balance()

    def leave_out(self) -> None:
        """Leave this step's update out: nothing that is trained moves, nor do averages."""
        self.zero_grad(set_to_none=True)
        self._left_out = True

    def recall(self, notes: dict[str, Any]) -> None:
        """Take what a checkpoint noted of the steps before it."""
        self.spikes = SpikeHistory(**notes.get("spikes", {}))

    def notes(self) -> dict[str, Any]:
        """Return what rebuilds the backbone, asks it, and lets another corpus be refused."""
        seen = {"spikes": self.spikes.to_plain()} if self.spikes != SpikeHistory() else {}
        return seen | {
            "backbone": self.backbone_data,
            "corpus": self.corpus_hash,
            "fill": self._last_objective().fill,
        }
