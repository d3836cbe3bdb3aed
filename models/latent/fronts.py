"""Positions in front of documents, in packed rows.

    tokens          a b c | d e | .         two documents and padding
    positions   1 2 a b c | 1 2 d e | .     with two vectors in front of each document

A vector's position is of its document, so every mixer reads it, and no other document does.

Legend: B batch, T time, L positions with the vectors among them, D width, N documents, P vectors
of a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .documents import first_positions
from .latent import Thought


@dataclass(frozen=True)
class Fronted:
    """Rows with vectors in front of their documents.

    Attributes:
        source_BL: where each position's input stands: among all tokens laid end to end, then all
            vectors, then nothing.
        segments_BL: document ids of the positions; None where each row is one document.
        places_BT: where each token stands among the positions laid end to end; what was left out
            stands nowhere.
    """

    source_BL: Tensor
    segments_BL: Tensor | None
    places_BT: Tensor

    @classmethod
    def whole_rows(cls, number_B: Tensor, length: int, vectors: int) -> "Fronted":
        """Each row is a document that begins; their numbers are given."""
        rows, device = len(number_B), number_B.device
        row_B1 = torch.arange(rows, device=device)[:, None]
        tokens_BT = row_B1 * length + torch.arange(length, device=device)
        vector_P = torch.arange(vectors, device=device)
        vectors_BP = rows * length + number_B[:, None] * vectors + vector_P
        places_BT = tokens_BT + (row_B1 + 1) * vectors
        return cls(torch.cat([vectors_BP, tokens_BT], dim=1), None, places_BT)

    @classmethod
    def of(
        cls, segments_BT: Tensor, number_BT: Tensor, kept_BT: Tensor, documents: int, vectors: int
    ) -> "Fronted":
        """Put vectors before each document that has a number.

        Args:
            segments_BT: document ids.
            number_BT: numbers of documents; -1 where no vectors go before.
            kept_BT: which tokens are kept, in a row of each document; the others are left out.
            documents: how many have a number, here or in other rows.
            vectors: of each document.
        """
        first_BT = first_positions(torch.where(kept_BT, number_BT, -1))
        ends_BT = (kept_BT.long() + vectors * first_BT).cumsum(dim=1)
        rows, length = len(ends_BT), max(1, int(ends_BT[:, -1].max()))
        device, vector_P = ends_BT.device, torch.arange(vectors, device=ends_BT.device)
        places_BT = ends_BT - 1 + torch.arange(rows, device=device)[:, None] * length
        number_M1 = number_BT[first_BT][:, None]
        tokens = kept_BT.numel()
        source_X = torch.full((rows * length,), tokens + documents * vectors, device=device)
        segments_X = torch.full_like(source_X, -1)
        source_X[places_BT[kept_BT]] = kept_BT.flatten().nonzero()[:, 0]
        segments_X[places_BT[kept_BT]] = segments_BT[kept_BT]
        before_MP = places_BT[first_BT][:, None] - vectors + vector_P
        source_X[before_MP] = tokens + number_M1 * vectors + vector_P
        segments_X[before_MP] = segments_BT[first_BT][:, None].expand_as(before_MP)
        return cls(source_X.view(rows, length), segments_X.view(rows, length), places_BT)

    def inputs(self, x_BTD: Tensor, vectors_NPD: Tensor) -> Tensor:
        """Return the positions' inputs, `[B, L, D]`."""
        nothing_1D = x_BTD.new_zeros(1, x_BTD.shape[-1])
        every = (x_BTD.flatten(0, 1), vectors_NPD.flatten(0, 1).to(x_BTD.dtype), nothing_1D)
        return torch.cat(every)[self.source_BL]

    def tokens_of(self, x: Tensor) -> Tensor:
        """Return what stands at the tokens' positions, of `[B, L, ...]`."""
        return x.flatten(0, 1)[self.places_BT]

    def back(self, thought: Thought) -> Thought:
        """Return what is the tokens' alone; recorded states keep all positions."""
        ran = thought.trajectory
        exits_BT = None if ran.exits_BT is None else self.tokens_of(ran.exits_BT)
        trajectory = replace(
            ran,
            segments_BT=self.segments_BL,
            exits_BT=exits_BT,
            halts=[self.tokens_of(halt) for halt in ran.halts],
            layers=[self.tokens_of(layer) for layer in ran.layers],
            finish=lambda hidden: self.tokens_of(ran.finish(hidden)),
        )
        return Thought(self.tokens_of(thought.hidden_BTD), trajectory, thought.losses)


def joined_in_rows(parts: Sequence[tuple[Tensor, Thought]]) -> Thought:
    """Put thoughts of some rows each, `(rows, thought)`, together: all rows in order."""
    order_B = torch.cat([rows for rows, _ in parts]).argsort()
    thoughts = [thought for _, thought in parts]
    ran = [thought.trajectory for thought in thoughts]

    def together(pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(pieces))[order_B]

    known = [each.exits_BT for each in ran if each.exits_BT is not None]
    trajectory = replace(
        ran[-1],
        exits_BT=together(known) if len(known) == len(ran) else None,
        halts=[together(each) for each in zip(*(r.halts for r in ran), strict=True)],
        layers=[together(each) for each in zip(*(r.layers for r in ran), strict=True)],
    )
    hidden_BTD = together([thought.hidden_BTD for thought in thoughts])
    return Thought(hidden_BTD, trajectory, thoughts[-1].losses)
