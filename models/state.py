"""What a mixer remembers between calls.

Legend: B batch.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from .segments import NO_DOCUMENT


@dataclass
class State:
    """Rows of memory; a subclass adds tensors whose first axis is the batch, or further states.

    Attributes:
        document_B: id of the document that each row is in.
        position_B: how many tokens of it the row has read.
    """

    document_B: Tensor
    position_B: Tensor

    def take(self, rows: Tensor) -> Self:
        """Return a copy with these rows, in this order: drop finished ones, or fork by repeats."""
        return replace(self, **{name: x.index_select(0, rows) for name, x in self._tensors()})

    def put(self, rows: Tensor, other: "State") -> None:
        """Overwrite these rows, in place, by the rows of another state of the same capacity."""
        theirs = dict(other._tensors())
        for name, x in self._tensors():
            x[rows] = theirs[name].to(x.dtype)

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place: they have read nothing."""
        for name, x in self._tensors():
            x[rows] = NO_DOCUMENT if name == "document_B" else 0

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors but the document and position counters."""
        counters = ("document_B", "position_B")
        return sum(
            x.numel() * x.element_size() for name, x in self._tensors() if name not in counters
        )

    def _tensors(self) -> list[tuple[str, Tensor]]:
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, x) for name, x in values if isinstance(x, Tensor)]


def empty_counters(batch: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return `document_B, position_B` of rows that have read nothing."""
    document_B = torch.full((batch,), NO_DOCUMENT, dtype=torch.long, device=device)
    return document_B, torch.zeros(batch, dtype=torch.long, device=device)


def continues(state: State, segments_BT: Tensor | None) -> Tensor | None:
    """Whether each row's first token goes on with the state's document, `[B]`.

    None means that every row does: without segments the caller promises it.
    """
    return None if segments_BT is None else state.document_B == segments_BT[:, 0]


def advance(
    state: State, segments_BT: Tensor | None, length: int, positions_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the counters `document_B, position_B` after reading these tokens."""
    if segments_BT is None:
        document_B = state.document_B.clamp(min=0)
        return document_B, state.position_B + length
    # A copy: a state is overwritten in place, and the caller's segments are not ours to change.
    return segments_BT[:, -1].clone(), positions_BT[:, -1] + 1


def keep(x: Tensor, kept_B: Tensor | None) -> Tensor:
    """Zero the rows of `x` whose document ended; `kept_B=None` keeps all."""
    if kept_B is None:
        return x
    return x * kept_B.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
