"""Which rows of a state are in a document already, so that its vectors are inferred once.

Legend: B batch, T time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..segments import document_positions
from ..state import State, advance, continues, empty_counters, keep


@dataclass
class VectorMemory(State):
    """The counters alone: the vectors live on in the memories of the stack.

    Attributes:
        least: positions that every row has read at least.
        most: positions that a row has read at most; with `least` it answers most calls without a
            look at the device.
    """

    least: int = 0
    most: int = 0

    @classmethod
    def empty(cls, batch: int, device: torch.device | str) -> "VectorMemory":
        """Return that no row has read anything."""
        return cls(*empty_counters(batch, device))

    def goes_on(self, segments_BT: Tensor | None) -> Tensor | None:
        """Say which rows' first token goes on with the document they are in; None is no row."""
        if not self.most:
            return None
        kept_B = continues(self, segments_BT)
        return self.position_B > 0 if kept_B is None else kept_B & (self.position_B > 0)

    def read(self, segments_BT: Tensor | None, length: int) -> None:
        """Count tokens that were read."""
        start_B = keep(self.position_B, continues(self, segments_BT))
        device = self.position_B.device
        positions_BT = document_positions(segments_BT, length, start_B, device)
        counters = advance(self, segments_BT, length, positions_BT)
        self.document_B, self.position_B = counters
        self.least, self.most = self.least + length, self.most + length

    def put(self, rows: Tensor, other: State) -> None:
        """Overwrite these rows, in place."""
        assert isinstance(other, VectorMemory)
        super().put(rows, other)
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place."""
        super().forget(rows)
        self.least = 0
