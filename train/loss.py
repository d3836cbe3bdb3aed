"""Cross-entropies of many positions, a chunk of logits at a time.

Legend: B batch, T time, D width, V vocabulary, N positions with a target.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.latent.latent import Readout


def target_places(weights_BT: Tensor) -> Tensor:
    """Return the positions `[N]`, of all rows laid end to end, whose target has a weight."""
    return weights_BT.flatten().nonzero()[:, 0]


def position_losses(
    hidden_ND: Tensor, readout: Readout, targets_N: Tensor, chunk_size: int, z_loss: float = 0.0
) -> Tensor:
    """Return each position's cross-entropy, nats, reading out `chunk_size` positions at a time.

    All logits are never held together: a chunk's are made again in the backward pass.
    """

    def one(hidden: Tensor, targets: Tensor) -> Tensor:
        return _losses(readout(hidden), targets, z_loss)

    chunks = list(zip(hidden_ND.split(chunk_size), targets_N.split(chunk_size), strict=True))
    if len(chunks) == 1:
        return one(*chunks[0])
    parts = [checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat([part for part in parts if part is not None])


def _losses(logits_NV: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
    # At least float32, whatever the logits were computed in; float64 stays.
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    losses = F.cross_entropy(logits_NV, targets_N, reduction="none")
    if z_loss:
        losses = losses + z_loss * logits_NV.logsumexp(dim=-1).square()
    return losses
