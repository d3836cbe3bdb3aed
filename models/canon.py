"""Canon layers: residual causal convolutions at fixed places of a block.

Source: "Physics of Language Models: Part 4.1" (SSRN 5240330), whose places are A (before the
mixer), B (inside it, on queries, keys and values), C (before the feed-forward network) and D
(inside that, before the activation). B is each mixer's own `conv_width`; this file holds the
others. The residual form with filters of two tokens contains RWKV's token shift.

Legend: B batch, T time, D width, W filter width.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from .convolution import ShortConvolution
from .state import continues, keep

PLACES = "ACD"


@dataclass
class CanonState:
    """A mixer's state, and the inputs that the block's own convolutions still need.

    Attributes:
        mixer: the mixer's state, which knows each row's document and position.
        tails: by place, the last W-1 inputs `[B, W-1, D]`.
    """

    mixer: Any
    tails: dict[str, Tensor]

    @property
    def document_B(self) -> Tensor:
        """Id of the document that each row is in."""
        return self.mixer.document_B

    @property
    def position_B(self) -> Tensor:
        """How many tokens of it each row has read."""
        return self.mixer.position_B

    def take(self, rows: Tensor) -> Self:
        """Return a copy with these rows, in this order."""
        tails = {place: tail.index_select(0, rows) for place, tail in self.tails.items()}
        return type(self)(self.mixer.take(rows), tails)

    def put(self, rows: Tensor, other: Self) -> None:
        """Overwrite these rows, in place, by the rows of another state of the same capacity."""
        self.mixer.put(rows, other.mixer)
        for place, tail in self.tails.items():
            tail[rows] = other.tails[place].to(tail.dtype)

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place."""
        self.mixer.forget(rows)
        for tail in self.tails.values():
            tail[rows] = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = sum(tail.numel() * tail.element_size() for tail in self.tails.values())
        return self.mixer.nbytes + own


class Canon(nn.Module):
    """The convolutions of one block.

    Args:
        places: letters out of A, C and D.
        width: tokens that a filter spans.
        dim: model width, of A and C.
        inner_width: hidden values of the feed-forward network, of D.

    Raises:
        ValueError: on another letter, a width below 2, or a D where there is nothing to convolve.
    """

    def __init__(self, places: str, width: int, dim: int, inner_width: int) -> None:
        super().__init__()
        _check(places, width, inner_width)
        widths = {"A": dim, "C": dim, "D": inner_width}
        self.convolutions = nn.ModuleDict(
            {place: ShortConvolution(widths[place], width, residual=True) for place in places}
        )

    def __bool__(self) -> bool:
        """Whether there is any."""
        return len(self.convolutions) > 0

    def reset_parameters(self) -> None:
        """Start every filter at zero: a new Canon layer is the identity."""
        for convolution in self.each().values():
            convolution.reset_parameters()

    def each(self) -> dict[str, ShortConvolution]:
        """Return the convolutions by place."""
        found = self.convolutions.items()
        return {place: c for place, c in found if isinstance(c, ShortConvolution)}

    def apply_at(
        self, place: str, x: Tensor, segments_BT: Tensor | None, tails: dict[str, Tensor] | None
    ) -> Tensor:
        """Convolve at a place (nothing where there is none), and move its tail on, in `tails`."""
        if place not in self.convolutions:
            return x
        given = None if tails is None else tails[place]
        y, tail = self.convolutions[place](x, segments_BT, given)
        if tails is not None:
            tails[place] = tail
        return y

    def kept_tails(self, state: CanonState, segments_BT: Tensor | None) -> dict[str, Tensor]:
        """Return the tails of a state, zero in rows whose document ended."""
        kept_B = continues(state.mixer, segments_BT)
        return {place: keep(tail, kept_B) for place, tail in state.tails.items()}

    def init_tails(
        self, batch: int, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return zero tails."""
        return {place: c.init_tail(batch, device, dtype) for place, c in self.each().items()}

    @property
    def flops(self) -> int:
        """FLOPs of one token."""
        return sum(convolution.flops for convolution in self.each().values())

    @property
    def state_size(self) -> int:
        """Numbers held between tokens."""
        return sum(convolution.state_size for convolution in self.each().values())


def _check(places: str, width: int, inner_width: int) -> None:
    if len(set(places)) < len(places) or set(places) - set(PLACES):
        raise ValueError(
            f"backbone.canon={places} must be some of the letters A, C and D, once each (B is the "
            "mixers' own conv_width)"
        )
    if places and width < 2:
        raise ValueError(f"backbone.canon_width={width} must be at least 2 tokens")
    if "D" in places and not inner_width:
        raise ValueError(
            f"backbone.canon={places}: D stands inside a dense feed-forward network, and a layer "
            "here has none: leave D out"
        )
