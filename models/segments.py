"""Positions within packed documents.

Legend: B batch, T time.
"""

import torch
from torch import Tensor

NO_DOCUMENT = -2
"""Id that no document has; padding is -1."""


def document_positions(
    segments_BT: Tensor | None, length: int, start_B: Tensor | None, device: torch.device
) -> Tensor:
    """Position of each token within its document, `[B or 1, T]`.

    Args:
        segments_BT: document ids, each document contiguous; None is one document.
        length: T.
        start_B: how many tokens of the first document came before; None is zero.
        device: where to make them.
    """
    if length == 1 and start_B is not None:
        return start_B[:, None]
    time_T = torch.arange(length, device=device)
    if segments_BT is None:
        positions = time_T[None]
        return positions if start_B is None else positions + start_B[:, None]
    changes = segments_BT[:, 1:] != segments_BT[:, :-1]
    first_B1 = torch.zeros_like(segments_BT[:, :1], dtype=torch.bool)
    starts = torch.cat([first_B1, changes], dim=1) * time_T
    first_BT = starts.cummax(dim=1).values
    positions = time_T - first_BT
    return positions if start_B is None else positions + (first_BT == 0) * start_B[:, None]


def row_means(x_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Mean over the tokens of each row, padding left out, `[B]`: however rows are put together."""
    if segments_BT is None:
        return x_BT.mean(dim=1)
    real_BT = (segments_BT >= 0).to(x_BT.dtype)
    return (x_BT * real_BT).sum(dim=1) / real_BT.sum(dim=1).clamp(min=1)
