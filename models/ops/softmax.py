"""Causal softmax attention over packed documents, within an optional sliding window.

    o_t = sum_s softmax_s(scale * q_t . k_s) v_s,   s <= t, same document, t - s < window

Source: Vaswani et al. (arXiv 1706.03762, equation 1); grouped queries (arXiv 2305.13245).

Legend: B batch, T query time, S key time, H heads, G key/value heads (G divides H), K head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocked_attention import blocked_attention
from .twin import runs_step_by_step


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Tensor | None,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend from each query to the keys that it may see.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, S, G, K]`.
        v: values `[B, S, G, K]`.
        visible: `[B or 1, T, S]`, True where the query may see the key; None is plain causal order
            (then T = S), or all keys for a single query. Each query must see at least one key.
        window: the window that `visible` already respects, for the twin to multiply out no more.
        scale: multiplies the scores; default `K ** -0.5`.

    Returns:
        `[B, T, H, K]` in q's dtype.
    """
    if runs_step_by_step():
        return softmax_attention_reference(q, k, v, visible=visible, window=window, scale=scale)
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in (k, v))
    if q.is_cpu and v.requires_grad and q.shape[1] == k.shape[1]:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        with torch.autocast("cpu", enabled=False):
            out = blocked_attention(q.to(v.dtype), k.to(v.dtype), v, visible, window, factor)
        return out.to(q.dtype)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if visible is None else visible[:, None],
        is_causal=bool(visible is None and q.shape[1] > 1),
        scale=scale,
    )
    return out.transpose(1, 2)


def softmax_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Tensor | None,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Step-by-step twin of `softmax_attention`: one query at a time, over the keys so far.

    The causal half and the window alone are multiplied out, so that a FLOP counter sees what such
    attention costs.
    """
    length, keys = q.shape[1], k.shape[1]
    repeats = q.shape[2] // k.shape[2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(repeats, dim=2).transpose(1, 2) for x in (k, v))
    outputs = []
    for time in range(length):
        end = keys - length + time + 1  # keys of this very call stand last
        # Slots of a cache stand in any order: only keys of this very call can be cut by index.
        seen = slice(max(0, end - window) if window and keys == length else 0, end)
        scores = (factor * q[:, time, :, None]) @ k[:, :, seen].mT
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None, time, seen], float("-inf"))
        outputs.append((scores.softmax(dim=-1) @ v[:, :, seen])[:, :, 0])
    return torch.stack(outputs, dim=1)


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
) -> Tensor:
    """Whether each query may see each key, `[B or 1, T, S]`.

    Positions count within documents; a key at a negative position does not exist.
    """
    distance = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    seen = (distance >= 0) & (key_positions_BS >= 0)[:, None, :]
    if window is not None:
        seen = seen & (distance < window)
    if query_segments_BT is not None and key_segments_BS is not None:
        seen = seen & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])
    return seen
