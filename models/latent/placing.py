"""Put thoughts into rows of tokens that were written without them.

A text shows only `<think>`; the positions of the thoughts behind it are the scheme's own affair. So
whoever reads plain token ids puts them in, and reads the word after the thoughts at `<think>`.

Legend: B rows, T tokens, W positions (T and the thoughts), N thoughts of a row, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .latent import THOUGHT

WORD = 1
"""The role of a token that is no thought, a question's (`data.roles.Role`)."""
NOWHERE = -1


def first_places(tokens_BT: Tensor, segments_BT: Tensor | None, token: int) -> Tensor:
    """Where each row has a token first, padding left out, `[B]`; NOWHERE where it has not."""
    found_BT = tokens_BT == token
    if segments_BT is not None:
        found_BT = found_BT & (segments_BT >= 0)
    first_B = found_BT.to(torch.uint8).argmax(dim=1)
    return torch.where(found_BT.any(dim=1), first_B, NOWHERE)


@dataclass(frozen=True)
class Placed:
    """Rows with thoughts in them.

    Attributes:
        tokens_BW: tokens, thoughts in their places.
        segments_BW: documents; None where none were given.
        roles_BW: what each position is.
        shown_BT: the position that each token is read out at: its own, or the last thought behind.
    """

    tokens_BW: Tensor
    segments_BW: Tensor | None
    roles_BW: Tensor
    shown_BT: Tensor

    @classmethod
    def after(
        cls, place_B: Tensor, count: int, tokens_BT: Tensor, segments_BT: Tensor | None, token: int
    ) -> "Placed":
        """Put `count` thoughts after a place of each row.

        Args:
            place_B: the places; every row has one.
            count: N, at least 1.
            tokens_BT: the tokens.
            segments_BT: their documents, if any.
            token: what stands at a thought's place, for schemes that read it.
        """
        length, place_B1 = tokens_BT.shape[1], place_B[:, None]
        at_W = torch.arange(length + count, device=tokens_BT.device)
        thought_BW = (at_W > place_B1) & (at_W <= place_B1 + count)
        source_BW = torch.where(at_W <= place_B1, at_W, (at_W - count).maximum(place_B1))
        segments_BW = None if segments_BT is None else segments_BT.gather(1, source_BW)
        at_T = at_W[:length]
        return cls(
            tokens_BT.gather(1, source_BW).masked_fill(thought_BW, token),
            segments_BW,
            torch.where(thought_BW, THOUGHT, WORD),
            at_T + count * (at_T >= place_B1),
        )

    def shown(self, hidden_BWD: Tensor) -> Tensor:
        """The hidden states that tokens are read out of, `[B, T, D]`."""
        rows_B1 = torch.arange(len(hidden_BWD), device=hidden_BWD.device)[:, None]
        return hidden_BWD[rows_B1, self.shown_BT]
