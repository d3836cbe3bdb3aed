"""What the model and the loss receive: the rows of one step, as tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from .corpus import RowArrays


@dataclass
class Batch:
    """B rows of T tokens of packed documents.

    `tokens_BT`, `targets_BT`, `segments_BT` (document of the row, -1 is padding) and `roles_BT` are
    int64, `loss_BT` (weight of each target) is float32. `denominator` is a float32 scalar: the sum
    of the loss weights of the whole global batch, over all ranks and accumulation steps, so that
    the losses of its parts add up to one mean. `places_B` (int64) says which rows of the global
    batch these are; -1 is none. `written` holds the same documents with their steps written out,
    where thoughts replace some and a teacher wants to see them.
    """

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    segments_BT: torch.Tensor
    roles_BT: torch.Tensor
    loss_BT: torch.Tensor
    denominator: torch.Tensor
    places_B: torch.Tensor
    written: "Batch | None" = None

    @classmethod
    def from_rows(
        cls, rows: RowArrays, denominator: float, places: np.ndarray | None = None
    ) -> "Batch":
        """Rows of a corpus as a batch; the tensors share the arrays' memory.

        Without places the rows are the global batch's first.
        """
        if places is None:
            places = np.arange(len(rows.tokens))
        return cls(
            tokens_BT=torch.from_numpy(rows.tokens),
            targets_BT=torch.from_numpy(rows.targets),
            segments_BT=torch.from_numpy(rows.segments),
            roles_BT=torch.from_numpy(rows.roles),
            loss_BT=torch.from_numpy(rows.loss),
            denominator=torch.tensor(denominator, dtype=torch.float32),
            places_B=torch.from_numpy(places.astype(np.int64)),
        )

    def unscored(self) -> "Batch":
        """The same rows as part of no global batch: without a weight, and at no place."""
        nothing_BT, nowhere_B = torch.zeros_like(self.loss_BT), torch.full_like(self.places_B, -1)
        return replace(self, loss_BT=nothing_BT, places_B=nowhere_B)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where copies to a GPU can overlap work."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "Batch":
        """Change every tensor, and what was written."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {k: x if x is None else change(x) for k, x in values.items()}
        return Batch(**changed)
