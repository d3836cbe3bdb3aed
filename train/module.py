"""The Lightning module: thin, and the same for every architecture."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from data.batch import Batch
from models.backbone import Backbone
from models.config import backbone_from_dict

from .objective import Objective
from .optim import OptimConfig, RoleOptimizer
from .stage import StagePlan, set_trainable


class PretrainModule(L.LightningModule):
    """Trains a backbone through the stages of a run.

    Args:
        backbone: the backbone's resolved settings, as plain data.
        optim: the optimiser's settings.
        plan: the stages.
        seed: keys initialisation and every draw of the run.
        compile_blocks: compile each block.
        corpus_hash: manifest hash of the corpus; kept in checkpoints, checked on resume.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        optim: OptimConfig,
        plan: StagePlan,
        seed: int,
        compile_blocks: bool,
        corpus_hash: str,
    ) -> None:
        super().__init__()
        self.backbone_data, self.optim, self.plan = backbone, optim, plan
        self.seed, self.compile_blocks, self.corpus_hash = seed, compile_blocks, corpus_hash
        self.objective: Objective | None = None

    def configure_model(self) -> None:
        """Build the backbone under the run's seed; later calls keep the first one."""
        if self.objective is not None:
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            backbone = Backbone(backbone_from_dict(self.backbone_data))
        if self.compile_blocks:
            backbone.compile_blocks()
        self.objective = Objective(backbone)

    @property
    def net(self) -> Objective:
        """The objective around its backbone, once built."""
        assert self.objective is not None
        return self.objective

    def loops_at(self, step: int) -> int:
        """Return the loop count of a step of the run: a pure function of seed, stage and step."""
        place = self.plan.place(step)
        return self.net.backbone.depth.loops_for_step(self.seed, place.stage, place.step)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the right parts train when a stage begins, and when a run resumes within one."""
        place = self.plan.place(self.global_step)
        trainable = self.plan.stages[place.stage].trainable
        if trainable and (place.step == 0 or batch_idx == 0):
            set_trainable(self.net.backbone, trainable)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the micro-batch's loss, scaled so that Lightning's means give the global one."""
        place = self.plan.place(self.global_step)
        config = self.plan.stages[place.stage].objective
        loss = self.net(batch, config, self.loops_at(self.global_step))
        return loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log the mean loss on held-out documents at the depth's default count."""
        config = self.plan.stages[self.plan.place(self.global_step).stage].objective
        loss = self.net(batch, config, None)
        weight = float(batch.denominator)
        self.log("validation_loss", loss, batch_size=max(round(weight), 1), on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, a pure function of the step."""
        optimizer = RoleOptimizer(self.net, self.optim)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.plan.learning_rate_share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to rebuild the backbone and to refuse another corpus."""
        checkpoint["pauca"] = {"backbone": self.backbone_data, "corpus": self.corpus_hash}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained on another corpus."""
        theirs = checkpoint["pauca"]["corpus"]
        if theirs != self.corpus_hash:
            raise ValueError(
                f"the checkpoint was trained on corpus {theirs[:12]}, this run reads "
                f"{self.corpus_hash[:12]}: restore the corpus, or remove the run folder to start "
                "anew"
            )
