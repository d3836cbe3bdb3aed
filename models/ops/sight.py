"""Which keys of its document a query of softmax attention sees: earlier ones, a window, or all.

Legend: B batch, T query time, S key time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OwnKeys:
    """Which keys of one call each of its queries sees, made by the block: `T x T` may not fit.

    Attributes:
        positions_BT: positions within documents.
        segments_BT: document ids; None is one document.
        window: keys that a query sees at most, itself included, beside the sinks; None is all.
        sinks: first tokens of a document that stay in sight of all of it.
        causal: whether later keys are out of sight; without, there is neither window nor sinks.
    """

    positions_BT: Tensor
    segments_BT: Tensor | None
    window: int | None
    sinks: int = 0
    causal: bool = True

    def among(self, rows: slice, columns: slice) -> Tensor:
        """Whether these queries see these keys, `[B or 1, rows, columns]`."""
        if not self.causal:
            return self._whole(rows, columns)
        positions, segments = self.positions_BT, self.segments_BT
        queries = keys = None
        if segments is not None:
            queries, keys = segments[:, rows], segments[:, columns]
        if not self.sinks:  # then times tell what positions do, once for all rows of the batch
            positions = torch.arange(positions.shape[1], device=positions.device)[None]
        pairs = (positions[:, rows], positions[:, columns], queries, keys)
        return visible_keys(*pairs, self.window, sinks=self.sinks)

    def all(self) -> Tensor:
        """Whether each query sees each key, `[B or 1, T, T]`."""
        if self.sinks or not self.causal:
            return self.among(slice(None), slice(None))
        positions_BT = self.positions_BT
        return earlier_keys(
            self.segments_BT, positions_BT.shape[1], self.window, positions_BT.device
        )

    def _whole(self, rows: slice, columns: slice) -> Tensor:
        """All keys of the query's document, earlier and later ones."""
        one = torch.zeros_like(self.positions_BT)
        names = one if self.segments_BT is None else self.segments_BT
        return names[:, rows, None] == names[:, None, columns]


def is_causal(visible: Tensor | OwnKeys | None) -> bool:
    """Whether no query sees a key after its own place: so it is, but where `OwnKeys` says no."""
    return not isinstance(visible, OwnKeys) or visible.causal


def as_mask(visible: Tensor | OwnKeys | None) -> Tensor | None:
    """Make the mask where it is not made yet."""
    return visible.all() if isinstance(visible, OwnKeys) else visible


def earlier_keys(
    segments_BT: Tensor | None, length: int, window: int | None, device: torch.device
) -> Tensor:
    """Whether each token of one call may see each other one of it, `[B or 1, T, T]`."""
    earlier = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        earlier = earlier.triu(1 - window)
    if segments_BT is not None:
        earlier = earlier & (segments_BT[:, :, None] == segments_BT[:, None, :])
    return earlier


def visible_keys(
    query_positions_BT: Tensor,
    key_positions_BS: Tensor,
    query_segments_BT: Tensor | None,
    key_segments_BS: Tensor | None,
    window: int | None,
    *,
    sinks: int = 0,
) -> Tensor:
    """Whether each query may see each key, `[B or 1, T, S]`.

    Positions count within documents; a key at a negative position does not exist. The first `sinks`
    tokens of a document stay in sight of all of it.
    """
    distance = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    seen = (distance >= 0) & (key_positions_BS >= 0)[:, None, :]
    if window is not None:
        near = distance < window
        if sinks:
            near = near | (key_positions_BS < sinks)[:, None, :]
        seen = seen & near
    if query_segments_BT is not None and key_segments_BS is not None:
        seen = seen & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])
    return seen
