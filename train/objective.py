"""What the trainer minimises, given a backbone's output and a batch.

Legend: B batch, T time, D width, V vocabulary, N positions with a target.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.batch import Batch
from models.backbone import Backbone
from models.depth.depth import Trajectory
from models.depth.draws import Draws
from models.latent.latent import Readout

from .fill import fill_in


@dataclass
class ObjectiveConfig:
    """Settings of the objective.

    Attributes:
        chunk_size: positions whose logits are held at once; it changes memory, not the loss.
        z_loss: weight of `logsumexp(logits)^2` (arXiv 2204.02311); 0 is none.
        fill: mask what follows the prompt, and predict each of its tokens at its own place instead
            of one before (see `train.fill`); what sees whole documents can't be trained otherwise.
    """

    chunk_size: int = 4096
    z_loss: float = 0.0
    fill: bool = False

    def validate(self, key: str) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.chunk_size < 1:
            raise ValueError(f"{key}.chunk_size={self.chunk_size} must be at least 1 position")
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"{key}.z_loss={self.z_loss} must be a finite number of at least 0")


class Objective(nn.Module):
    """Runs the backbone and its loss inside one forward, as sharding needs.

    The loss is the weighted sum of cross-entropies over the target positions, divided by the sum of
    weights of the *global* batch (`batch.denominator`): it does not depend on how the batch is cut
    over ranks or accumulation. Auxiliary losses are means over rows, so a part of the batch counts
    them by its share of the rows.
    """

    def __init__(self, backbone: Backbone, mask_id: int | None = None) -> None:
        super().__init__()
        self.backbone, self.mask_id = backbone, mask_id
        self.recorded: Trajectory | None = None

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
        output = self.backbone(
            batch.tokens_BT,
            batch.segments_BT,
            loops=loops,
            roles_BT=batch.roles_BT,
            record=record,
            draws=draws,
        )
        self.recorded = output.trajectory if record else None
        total = weighted_cross_entropy(
            output.hidden_BTD, output.readout, batch.targets_BT, batch.loss_BT, config
        )
        # A batch in which nothing is a target (all is masked) has nothing to learn: its loss is 0.
        mean = total / batch.denominator.clamp(min=torch.finfo(torch.float32).tiny)
        return mean + share * sum(output.losses.values())


def weighted_cross_entropy(
    hidden_BTD: Tensor,
    readout: Readout,
    targets_BT: Tensor,
    weights_BT: Tensor,
    config: ObjectiveConfig,
) -> Tensor:
    """Return the weighted sum of cross-entropies, reading out `chunk_size` positions at a time.

    Positions without weight are never read out. All logits are never held together: a chunk's are
    made again in the backward pass.
    """
    kept = weights_BT.flatten().nonzero()[:, 0]
    hidden_ND = hidden_BTD.flatten(0, 1)[kept]
    targets_N, weights_N = targets_BT.flatten()[kept], weights_BT.flatten()[kept]

    def one(hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return _chunk_loss(readout(hidden), targets, weights, config.z_loss)

    size = config.chunk_size
    chunks = list(
        zip(hidden_ND.split(size), targets_N.split(size), weights_N.split(size), strict=True)
    )
    if len(chunks) == 1:
        return one(*chunks[0])
    parts = [checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack([part for part in parts if part is not None]).sum()


def _chunk_loss(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, z_loss: float) -> Tensor:
    # At least float32, whatever the logits were computed in; float64 stays.
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    losses = F.cross_entropy(logits_NV, targets_N, reduction="none")
    if z_loss:
        losses = losses + z_loss * logits_NV.logsumexp(dim=-1).square()
    return (losses * weights_N).sum()
