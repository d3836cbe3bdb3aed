"""Thinking one thought after the other in training, each position run once.

Documents are laid out one a row, aligned where their last thought ends, and read with states: the
words before, thought by thought, the words after. So n thoughts cost n short serial steps, and not
n passes over everything, which is what the plain twin does (`fed.one_by_one`). It works for every
mixer and depth that keeps a state, packed rows or not; gradients flow through the states.

Legend: B batch, T time, D width, N documents, L positions of the longest head or tail.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..depth.depth import Between
from ..processes import most_in_any_process
from .latent import Reading, Run, Thought, mean_losses

ReadOn = Callable[[Reading, Tensor, Tensor | None], Thought]
"""`(given, x_BTD, places_BT) -> Thought`: read with the states in `given`, and bring them on."""


@dataclass(frozen=True)
class Layout:
    """Documents of packed rows, one a row.

    Attributes:
        head_NL: place in the flattened batch of each document's positions through its last thought
            (through its end where it has none), aligned at the right.
        head_real_NL: where `head_NL` holds a position of the document.
        tail_NL: the same of what follows, aligned at the left.
        tail_real_NL: where `tail_NL` holds a position of the document.
        positions: of the flattened batch.
    """

    head_NL: Tensor
    head_real_NL: Tensor
    tail_NL: Tensor
    tail_real_NL: Tensor
    positions: int

    @classmethod
    def of(cls, segments_BT: Tensor | None, places_BT: Tensor, together: bool) -> "Layout":
        """Lay out the documents of a batch; padding belongs to none.

        Heads and tails are as long as the longest here, or `together` in any process.
        """
        rows, length = places_BT.shape
        device = places_BT.device
        own_BT = torch.zeros_like(places_BT, dtype=torch.long)
        own_BT = own_BT if segments_BT is None else segments_BT
        begins_BT = torch.ones_like(places_BT)
        begins_BT[:, 1:] = own_BT[:, 1:] != own_BT[:, :-1]
        starts_N = begins_BT.flatten().nonzero()[:, 0]
        ends_N = torch.cat([starts_N[1:], starts_N.new_tensor([rows * length])])
        real_N = own_BT.flatten()[starts_N] >= 0
        if not real_N.any():  # nothing but padding: an empty document runs along with the others'
            starts_N, ends_N, real_N = starts_N[:1], starts_N[:1], torch.ones_like(real_N[:1])
        starts_N, ends_N = starts_N[real_N], ends_N[real_N]
        thoughts_M = places_BT.flatten().nonzero()[:, 0]
        number_M = torch.searchsorted(starts_N, thoughts_M, right=True) - 1
        cuts_N = torch.zeros_like(ends_N).scatter_reduce(0, number_M, thoughts_M + 1, "amax")
        cuts_N = torch.where(cuts_N > 0, cuts_N, ends_N)
        head = max(1, int((cuts_N - starts_N).max()))
        tail = int((ends_N - cuts_N).max())
        if together:
            head, tail = most_in_any_process([head, tail], device)
        head_NL = cuts_N[:, None] - head + torch.arange(head, device=device)
        tail_NL = cuts_N[:, None] + torch.arange(tail, device=device)
        return cls(
            head_NL.clamp(min=0),
            head_NL >= starts_N[:, None],
            tail_NL.clamp(max=rows * length - 1),
            tail_NL < ends_N[:, None],
            rows * length,
        )

    def back(self, pieces: Sequence[Tensor]) -> Tensor:
        """Put heads, and tails if there are any, `[N, L, D]`, back: `[B T, D]`, padding zero."""
        real = [self.head_real_NL, self.tail_real_NL][: len(pieces)]
        at = [self.head_NL, self.tail_NL][: len(pieces)]
        places = torch.cat([a[r] for a, r in zip(at, real, strict=True)])
        found = torch.cat([piece[r] for piece, r in zip(pieces, real, strict=True)])
        return found.new_zeros(self.positions, found.shape[-1]).index_put((places,), found)

    @property
    def longest(self) -> int:
        """Positions that a document takes at most."""
        return self.head_NL.shape[1] + self.tail_NL.shape[1]


class _CopyingRun:
    """Runs on copies of memories: what the backward pass needs of the old ones stays as it was."""

    def __init__(self, run: Run) -> None:
        self.run, self.keeps_rows = run, run.keeps_rows

    def __call__(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        calls: list[Any] | None = None,
        between: Between | None = None,
    ) -> Thought:
        assert calls is not None
        if torch.is_grad_enabled():
            every = torch.arange(len(x_BTD), device=x_BTD.device)
            calls[:] = [call.take(every) for call in calls]
        return self.run(x_BTD, segments_BT, calls, between)

    def fresh(self, batch: int, max_len: int) -> list[Any]:
        return self.run.fresh(batch, max_len)


def unrolled(
    read_on: ReadOn,
    begin: Callable[[int], Any],
    given: Reading,
    x_BTD: Tensor,
    places_BT: Tensor,
) -> Thought:
    """Think one thought after the other; see above.

    Args:
        read_on: how the scheme reads with a state.
        begin: makes the scheme's own memory of so many documents.
        given: the pass.
        x_BTD: embedded tokens.
        places_BT: where thoughts stand.

    Raises:
        ValueError: the stack keeps no state.
    """
    laid = Layout.of(given.segments_BT, places_BT, given.learns)
    flat_XD = x_BTD.flatten(0, 1)
    documents = len(laid.head_NL)
    calls, memory = given.run.fresh(documents, laid.longest), begin(documents)
    given = replace(given, run=_CopyingRun(given.run), calls=calls, memory=memory)
    thinks_NL = places_BT.flatten()[laid.head_NL] & laid.head_real_NL
    parts = [_read(read_on, given, flat_XD, laid.head_NL, laid.head_real_NL, thinks_NL)]
    if laid.tail_NL.shape[1]:
        parts.append(_read(read_on, given, flat_XD, laid.tail_NL, laid.tail_real_NL, None))

    def back(pieces: Sequence[Tensor]) -> Tensor:
        return laid.back(pieces).view_as(x_BTD)

    layers = zip(*(part.trajectory.layers for part in parts), strict=True)
    trajectory = replace(parts[-1].trajectory, layers=[back(each) for each in layers])
    return Thought(back([part.hidden_BTD for part in parts]), trajectory, mean_losses(parts))


def _read(
    read_on: ReadOn,
    given: Reading,
    flat_XD: Tensor,
    at_NL: Tensor,
    real_NL: Tensor,
    thinks_NL: Tensor | None,
) -> Thought:
    """Read heads or tails; what isn't real is padding."""
    given = replace(given, segments_BT=torch.where(real_NL, 0, -1))
    return read_on(given, flat_XD[at_NL], thinks_NL)
