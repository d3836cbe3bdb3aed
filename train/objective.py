"""What the trainer minimises, given a backbone's output and a batch.

Legend: B batch, T time, D width, V vocabulary, M labels, N positions with a target.
"""

import torch
from torch import Tensor, nn

from data.batch import Batch
from models.backbone import Backbone, Output
from models.depth.depth import Trajectory
from models.depth.draws import Draws
from models.latent.distilled import DistilledConfig

from .distillation import distance
from .fill import fill_in
from .loop_losses import (
    ExtraPass,
    Targets,
    consistency_loss,
    jacobian_norm,
    loss_over_loops,
    progressive_pass,
    short_pass,
)
from .loss import position_losses
from .objective_config import READS_LOOPS, ObjectiveConfig
from .teacher import Teacher
from .thought_words import words_of_thoughts


class Objective(nn.Module):
    """Runs the backbone and its loss inside one forward, as sharding needs.

    The loss is the weighted sum of cross-entropies over the target positions, divided by the sum of
    weights of the *global* batch (`batch.denominator`): it does not depend on how the batch is cut
    over ranks or accumulation. Auxiliary losses are means over rows, so a part of the batch counts
    them by its share of the rows. Without draws it is evaluation: the final predictions alone.

    Args:
        backbone: what is trained.
        mask_id: token that stands for what is to be filled in.
        teacher: labels what is read, in training, for a latent scheme that makes a loss of that.
    """

    def __init__(
        self, backbone: Backbone, mask_id: int | None = None, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.mask_id, self.teacher = backbone, mask_id, teacher
        self.recorded: Trajectory | None = None
        self.measured: dict[str, Tensor] = {}
        self.auxiliary: Tensor | None = None

    def forward(
        self,
        batch: Batch,
        config: ObjectiveConfig,
        draws: Draws | None,
        share: float = 1.0,
        loops: int | None = None,
        record: bool = False,
    ) -> Tensor:
        """Return the batch's part of the global loss, in nats per unit of weight.

        What a latent scheme tells of the pass is kept in `measured`, and what of the loss isn't
        cross-entropy in `auxiliary`.

        Args:
            batch: the whole global batch, or a part of it.
            config: settings.
            draws: where a training step is; None is evaluation, at the depth's default count.
            share: rows of this part over rows of the global batch.
            loops: loop count; None is what the draws say, or the depth's default.
            record: keep what ran, with its states, in `recorded`.
        """
        if config.fill:
            assert self.mask_id is not None, "to fill in needs a mask"
            batch = fill_in(batch, self.mask_id)
        over = "final" if draws is None else config.resolve_over(self.backbone)
        needs_states = draws is not None and (over in READS_LOOPS or config.jacobian > 0)
        taught = batch.written if draws is not None else None
        output = self._run(
            batch,
            draws,
            record or needs_states,
            loops,
            layers=taught is not None,
            labels_BTM=None if draws is None else self._labels(batch),
        )
        self.recorded = output.trajectory if record else None
        self.measured = output.measures
        targets = Targets.of(batch)
        if over == "final":
            total = _final(output, targets, config)
        else:
            total = loss_over_loops(output, targets, config, over)
        if config.thoughts and draws is not None:
            own = self.backbone.config.latent.words_at_own_place
            words = words_of_thoughts(batch, config.thoughts, self.mask_id, own)
            total = total + _final(output, words, config)
        auxiliary = sum(output.losses.values())
        written = 0.0
        if taught is not None:
            written, apart = self._taught(batch, taught, config, draws, loops, output)
            auxiliary = auxiliary + apart
        if draws is not None:
            total = self._with_more_passes(total, batch, targets, config, draws, output)
            if config.jacobian:
                stiffness = jacobian_norm(output.trajectory, batch.segments_BT, draws)
                total = (1 - config.jacobian) * total
                auxiliary = auxiliary + config.jacobian * stiffness
        self.auxiliary = (share * auxiliary).detach() if isinstance(auxiliary, Tensor) else None
        return _mean(total, batch) + written + share * auxiliary

    def _taught(
        self,
        batch: Batch,
        written: Batch,
        config: ObjectiveConfig,
        draws: Draws | None,
        loops: int | None,
        output: Output,
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's loss, and how far the student is from it, each as it counts."""
        latent = self.backbone.config.latent
        assert isinstance(latent, DistilledConfig)
        teacher = self._run(written, draws, False, loops, layers=True)
        own = _mean(_final(teacher, Targets.of(written), config), written)
        apart = distance(output.trajectory, teacher.trajectory, batch, written)
        return latent.teacher * own, latent.distill * apart

    def _labels(self, batch: Batch) -> Tensor | None:
        """Return what a frozen teacher says of each token, where there is one."""
        return None if self.teacher is None else self.teacher.labels(batch)

    def _run(
        self,
        batch: Batch,
        draws: Draws | None,
        record: bool,
        loops: int | None,
        window: int | None = None,
        layers: bool = False,
        labels_BTM: Tensor | None = None,
    ) -> Output:
        return self.backbone(
            batch.tokens_BT,
            batch.segments_BT,
            loops=loops,
            roles_BT=batch.roles_BT,
            record=record,
            draws=draws,
            gradient_loops=window,
            layers=layers,
            labels_BTM=labels_BTM,
        )

    def _with_more_passes(
        self,
        total: Tensor,
        batch: Batch,
        targets: Targets,
        config: ObjectiveConfig,
        draws: Draws,
        output: Output,
    ) -> Tensor:
        """Add the losses of further passes, at other loop counts."""
        loops = output.trajectory.loops
        if config.progressive:
            extra = progressive_pass(draws, loops)
            later = self._run(batch, draws, False, extra.loops, extra.window)
            own = _final(later, targets, config)
            total = (1 - config.progressive) * total + config.progressive * own
        if config.consistency:
            short = self._run(batch, draws, False, short_pass(draws, loops).loops)
            own = _final(short, targets, config)
            apart = consistency_loss(short.hidden_BTD, output.hidden_BTD, targets)
            total = total + config.consistency * (own + apart)
        return total


def extra_passes(config: ObjectiveConfig, draws: Draws, loops: int) -> list[ExtraPass]:
    """Return the further passes of a training step, for what they cost."""
    found = [progressive_pass(draws, loops)] if config.progressive else []
    return found + ([short_pass(draws, loops)] if config.consistency else [])


def _mean(total: Tensor, batch: Batch) -> Tensor:
    """A sum of losses over the weights of the global batch; where nothing is a target it is 0."""
    return total / batch.denominator.clamp(min=torch.finfo(torch.float32).tiny)


def _final(output: Output, targets: Targets, config: ObjectiveConfig) -> Tensor:
    """The weighted sum of cross-entropies of the final predictions.

    Positions without weight are never read out.
    """
    losses_N = position_losses(
        targets.at(output.hidden_BTD),
        output.readout,
        targets.tokens_N,
        config.chunk_size,
        config.z_loss,
    )
    return (losses_N * targets.weights_N).sum()
