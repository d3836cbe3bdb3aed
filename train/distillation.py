"""What a student that thinks learns from a teacher that writes: both are one backbone (CODI).

Legend: B batch, T time, D width, N documents with a trace.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from data.roles import Role
from models.depth.depth import Trajectory


def answer_begins(batch: Batch) -> Tensor:
    """Mark the places that predict the first token of an answer behind a trace, `[B, T]`."""
    marks_BT = torch.zeros_like(batch.roles_BT, dtype=torch.bool)
    marks_BT[:, :-1] = (
        (batch.roles_BT[:, :-1] == Role.TRACE)
        & (batch.roles_BT[:, 1:] == Role.ANSWER)
        & (batch.segments_BT[:, :-1] == batch.segments_BT[:, 1:])
    )
    return marks_BT


def distance(student: Trajectory, teacher: Trajectory, batch: Batch, written: Batch) -> Tensor:
    """Return how far the student's layers are from the teacher's where answers begin.

    Smooth L1, in units of the standard deviation of the teacher's channels at that place; a mean
    over layers and channels, then over the documents of each row, then over rows: however a batch
    is cut, its parts' means add up to the whole's.

    Args:
        student: with the layers of `batch`.
        teacher: with the layers of `written`; nothing is differentiated through it.
        batch: with thoughts.
        written: the same documents, written out.
    """
    here_BT, there_BT = answer_begins(batch), answer_begins(written)
    apart_N = torch.stack(
        [
            _apart(mine[here_BT], theirs[there_BT].detach())
            for mine, theirs in zip(student.layers, teacher.layers, strict=True)
        ]
    ).mean(dim=0)
    rows_N = here_BT.nonzero()[:, 0]
    count_B = here_BT.sum(dim=1)
    sums_B = apart_N.new_zeros(len(count_B)).index_add(0, rows_N, apart_N)
    return (sums_B / count_B.clamp(min=1)).mean()


def _apart(mine_ND: Tensor, theirs_ND: Tensor) -> Tensor:
    """The distance at each place, `[N]`."""
    mine_ND, theirs_ND = mine_ND.float(), theirs_ND.float()
    spread_N1 = theirs_ND.std(dim=-1, keepdim=True).clamp(min=1e-6)
    return (F.smooth_l1_loss(mine_ND, theirs_ND, reduction="none") / spread_N1).mean(dim=-1)
