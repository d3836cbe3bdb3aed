"""Run some positions of a batch, side by side, as if the others weren't there.

Where positions stop early, or are left behind by a router, the rest are put together, run, and put
back. So what stops costs nothing more: no block is called for it. To the layers that go on, a
position that isn't there has never been: a deeper loop sees the tokens that reached it, in their
order, with positions of their own (the policy `skip` for holes). It holds for every mixer, since
each keeps what it needs in its state.

Legend: B batch, T time, D width, M positions picked of each row, G rows of a group.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Positions that are run in one call.

    Attributes:
        rows_G: the rows.
        index_GM: their positions, in order.
        segments_GM: document ids, -1 where a row has fewer than M; None is one document.
        whole: whether the rows are all of the batch, in order.
    """

    rows_G: Tensor
    index_GM: Tensor
    segments_GM: Tensor | None
    whole: bool

    def pick(self, x: Tensor) -> Tensor:
        """Return the positions of `x`, `[B, T, ...]`, side by side."""
        return x[self.rows_G[:, None], self.index_GM]

    def place(self, x: Tensor, picked: Tensor) -> Tensor:
        """Return `x` with these positions replaced."""
        return x.index_put((self.rows_G[:, None], self.index_GM), picked.to(x.dtype))


def going_groups(
    active_BT: Tensor, segments_BT: Tensor | None, stateful: bool, cut: bool = True
) -> list[Group]:
    """Put the active positions into groups.

    A state must not read padding, so with one, rows are grouped by how many positions they have;
    without, they make one group, padded at the end by positions that aren't active.

    Args:
        active_BT: which positions run.
        segments_BT: document ids.
        stateful: whether the rows have a state.
        cut: whether M is the most that a row has, rather than T.
    """
    count_B = active_BT.sum(dim=1)
    order_BT = (~active_BT).to(torch.uint8).argsort(dim=1, stable=True)
    rows_B = torch.arange(len(active_BT), device=active_BT.device)
    if not stateful:
        length = int(count_B.max()) if cut else active_BT.shape[1]
        index_BM = order_BT[:, :length]
        given = torch.zeros_like(order_BT) if segments_BT is None else segments_BT
        real_BM = torch.arange(length, device=rows_B.device) < count_B[:, None]
        return [Group(rows_B, index_BM, given.gather(1, index_BM).where(real_BM, -1), True)]
    groups = []
    for count in count_B.unique().tolist():
        rows_G = rows_B[count_B == count]
        index_GM = order_BT[rows_G, :count]
        segments = None if segments_BT is None else segments_BT[rows_G[:, None], index_GM]
        if count:
            groups.append(Group(rows_G, index_GM, segments, len(rows_G) == len(rows_B)))
    return groups


def take_states(states: list[Any], calls: range, group: Group) -> list[Any]:
    """Return the states with those of some calls cut down to a group's rows."""
    if group.whole:
        return states
    taken = list(states)
    for call in calls:
        taken[call] = states[call].take(group.rows_G)
    return taken


def put_states(states: list[Any], calls: range, group: Group, taken: list[Any]) -> None:
    """Put a group's states back into those of the batch."""
    if group.whole:
        return
    for call in calls:
        states[call].put(group.rows_G, taken[call])


def forget_ended(states: list[Any], calls: range, segments_BT: Tensor | None) -> None:
    """Clear the rows whose document ended though no position of the next one came by.

    Otherwise a later call, which goes on with the new document, would find the old one's memory.
    """
    if segments_BT is None:
        return
    for call in calls:
        ended_B = states[call].document_B != segments_BT[:, -1]
        if ended_B.any():
            states[call].forget(ended_B.nonzero()[:, 0])
