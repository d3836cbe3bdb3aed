"""What thoughts stand for, as targets: the words that they replace (see `data.thoughts`).

Legend: B batch, T time, N thoughts.
"""

import torch

from data.batch import Batch
from data.roles import Role

from .loop_losses import Targets


def words_of_thoughts(
    batch: Batch, weight: float, none_id: int | None, at_own_place: bool
) -> Targets:
    """Return the word that each thought stands for, and where it is to be predicted.

    Args:
        batch: with thoughts; their words are the targets of the places before them.
        weight: of each word.
        none_id: the target of a thought that stands for nothing.
        at_own_place: predict it at the thought's place, rather than at the one before.
    """
    before_BT = torch.zeros_like(batch.roles_BT, dtype=torch.bool)
    before_BT[:, :-1] = batch.roles_BT[:, 1:] == Role.THOUGHT
    before_BT &= batch.targets_BT != none_id
    places_N = before_BT.flatten().nonzero()[:, 0]
    tokens_N = batch.targets_BT.flatten()[places_N]
    weights_N = torch.full_like(places_N, weight, dtype=batch.loss_BT.dtype)
    return Targets(places_N + at_own_place, tokens_N, weights_N)
