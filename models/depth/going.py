"""Run some positions of a batch, side by side.

Where positions stop early, or are left behind by a router, the rest are put together, run, and put
back. So what stops costs nothing more: no block is called for it. What the others see of it is the
policy for holes:

    skip    nothing: a deeper loop sees the tokens that reached it, in their order, with positions
            of their own. It holds for every mixer, since each keeps what it needs in its state.
    reuse   the keys and values that it showed the same layer in its last loop. For attention.

Legend: B batch, T time, D width, X channels, M positions picked of each row, G rows of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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
        real_GM: which of the positions are active; None is all of them.
    """

    rows_G: Tensor
    index_GM: Tensor
    segments_GM: Tensor | None
    whole: bool
    real_GM: Tensor | None = None

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Where the positions stand, as an index of `[B, T]`."""
        return self.rows_G[:, None], self.index_GM

    def pick(self, x: Tensor) -> Tensor:
        """Return the positions of `x`, `[B, T, ...]`, side by side."""
        return x[self.places]

    def place(self, x: Tensor, picked: Tensor) -> Tensor:
        """Return `x` with these positions replaced."""
        return x.index_put(self.places, picked.to(x.dtype))


def all_in_one(active_BT: Tensor, segments_BT: Tensor | None) -> Group:
    """Put the active positions into one group, of the rows that have any.

    Rows with fewer than the most are padded at the end, by positions that aren't active.
    """
    count_B = active_BT.sum(dim=1)
    rows_G = (count_B > 0).nonzero()[:, 0]
    index_GM = _in_order(active_BT)[rows_G, : int(count_B.max())]
    real_GM = torch.arange(index_GM.shape[1], device=rows_G.device) < count_B[rows_G, None]
    given = torch.zeros_like(active_BT, dtype=torch.long) if segments_BT is None else segments_BT
    segments_GM = given[rows_G[:, None], index_GM].where(real_GM, -1)
    return Group(rows_G, index_GM, segments_GM, len(rows_G) == len(active_BT), real_GM)


def of_equal_counts(active_BT: Tensor, segments_BT: Tensor | None) -> list[Group]:
    """Put rows with equally many active positions into groups: a state must not read padding."""
    count_B, order_BT, groups = active_BT.sum(dim=1), _in_order(active_BT), []
    for count in filter(None, count_B.unique().tolist()):
        rows_G = (count_B == count).nonzero()[:, 0]
        index_GM = order_BT[rows_G, :count]
        segments = None if segments_BT is None else segments_BT[rows_G[:, None], index_GM]
        groups.append(Group(rows_G, index_GM, segments, len(rows_G) == len(active_BT)))
    return groups


def one_padding(active_BT: Tensor) -> Group:
    """Put one position that isn't active into a group: what it makes is thrown away.

    For a process without anything to run in a loop that others run: all must call the same blocks.
    """
    place_11 = torch.zeros(1, 1, dtype=torch.long, device=active_BT.device)
    return Group(place_11[0], place_11, place_11 - 1, False, place_11 > 0)


def _in_order(active_BT: Tensor) -> Tensor:
    """The positions of each row, the active ones first, in order."""
    return (~active_BT).to(torch.uint8).argsort(dim=1, stable=True)


@runtime_checkable
class Showing(Protocol):
    """A mixer that can run some positions and let the others show their keys again.

    Attributes:
        shown_width: channels X of what a position shows.
    """

    shown_width: int

    def among(
        self,
        x_GMD: Tensor,
        own: tuple[tuple[Tensor, Tensor], Tensor | None],
        shown_BTX: Tensor,
        segments_BT: Tensor | None,
        state: Any,
    ) -> tuple[Tensor, Tensor, Any]:
        """Mix some positions, which see all others as what these showed last.

        Args:
            x_GMD: inputs of the positions that run.
            own: where they stand, as an index of `[B, T]`, and which of them are real; None is all.
            shown_BTX: what every position showed last; zero before any has.
            segments_BT: document ids of all positions.
            state: as a mixer's `forward` takes it; it reads all positions.

        Returns:
            `y_GMD`, what every position shows now, and the new state.
        """
        ...


@dataclass(frozen=True)
class Reuse:
    """Positions that run, among those that show again what they showed last.

    Attributes:
        group: the positions that run.
        segments_BT: document ids of all.
        shape: batch and time of all.
        shown: by layer, what each position showed it last.
    """

    group: Group
    segments_BT: Tensor | None
    shape: tuple[int, int]
    shown: dict[int, Tensor]

    def mixing(self, layer: int, mixer: Any) -> Callable[..., tuple[Tensor, Any]]:
        """Return what stands in for a layer's mixer; it is called as that is."""
        assert isinstance(mixer, Showing)

        def mix(x_GMD: Tensor, segments_GM: Tensor | None, state: Any) -> tuple[Tensor, Any]:
            shown_BTX = self.shown.get(layer)
            if shown_BTX is None:
                shown_BTX = x_GMD.new_zeros(*self.shape, mixer.shown_width)
            own = (self.group.places, self.group.real_GM)
            y_GMD, self.shown[layer], state = mixer.among(
                x_GMD, own, shown_BTX, self.segments_BT, state
            )
            return y_GMD, state

        return mix


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
