"""Documents of packed rows, counted.

Legend: B batch, T time, N documents.
"""

import torch
from torch import Tensor

from ..segments import document_positions


def number_documents(segments_BT: Tensor, goes_on_B: Tensor | None = None) -> tuple[Tensor, int]:
    """Count documents through all rows.

    Args:
        segments_BT: document ids, -1 is padding.
        goes_on_B: rows whose first document began in an earlier call; None is no row.

    Returns:
        `number_BT`, the number of each position's document, -1 for padding and for what goes on;
        and how many documents there are.
    """
    changes_BT = _begins(segments_BT)
    begins_BT, own_BT = changes_BT.clone(), segments_BT >= 0
    if goes_on_B is not None:
        begins_BT[:, 0] &= ~goes_on_B
        own_BT = own_BT & ~(goes_on_B[:, None] & (changes_BT.cumsum(dim=1) == 1))
    count_X = (begins_BT & own_BT).flatten().cumsum(dim=0)
    number_BT = torch.where(own_BT, count_X.view_as(segments_BT) - 1, -1)
    return number_BT, int(count_X[-1])


def first_positions(number_BT: Tensor) -> Tensor:
    """Where the documents that have a number begin, `[B, T]`."""
    return _begins(number_BT) & (number_BT >= 0)


def leading(asked_BT: Tensor, number_BT: Tensor) -> Tensor:
    """Where something holds that has held since the document began."""
    places_BT = document_positions(number_BT, number_BT.shape[1], None, number_BT.device)
    time_T = torch.arange(number_BT.shape[1], device=number_BT.device)
    fails_BT = (~asked_BT).long().cumsum(dim=1)
    first_BT = time_T - places_BT
    before_BT = fails_BT.gather(1, first_BT) - (~asked_BT).long().gather(1, first_BT)
    return fails_BT == before_BT


def mean_over_rows(x_N: Tensor, number_BT: Tensor) -> Tensor:
    """Mean over the documents of each row, then over rows: however rows are put into batches."""
    row_N = first_positions(number_BT).nonzero()[:, 0]
    counts_B = torch.bincount(row_N, minlength=len(number_BT)).clamp(min=1)
    sums_B = x_N.new_zeros(len(number_BT)).index_add(0, row_N, x_N)
    return (sums_B / counts_B).mean()


def _begins(ids_BT: Tensor) -> Tensor:
    begins_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    return begins_BT
