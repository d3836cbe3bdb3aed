"""Softmax attention over packed documents: causal, within a window with sinks, or of the whole.

    o_t = sum_s softmax_s(scale * q_t . k_s) v_s,
    s <= t, same document, and t - s < window or s one of the document's first `sinks` tokens;
    or, where it isn't causal, every s of the same document

Source: Vaswani et al. (arXiv 1706.03762, equation 1); grouped queries (arXiv 2305.13245); sinks
(arXiv 2309.17453, section 3.2).

Legend: B batch, T query time, S key time, H heads, G key/value heads (G divides H), K key dim,
V value dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocked_attention import blocked_attention
from .sight import OwnKeys, as_mask, is_causal
from .twin import runs_step_by_step


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Tensor | OwnKeys | None,
    window: int | None = None,
    sinks: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Attend from each query to the keys that it may see.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, S, G, K]`.
        v: values `[B, S, G, V]`.
        visible: `[B or 1, T, S]`, True where the query may see the key, or that of keys of the same
            call, unmade (these alone may show later keys); None is plain causal order (then T = S),
            or all keys for a single query.
            Each query must see at least one key.
        window: the window that `visible` already respects, for the twin to multiply out no more.
        sinks: first tokens of a document that `visible` shows beyond the window.
        scale: multiplies the scores; default `K ** -0.5`.

    Returns:
        `[B, T, H, V]` in q's dtype.
    """
    if runs_step_by_step():
        seen, causal = as_mask(visible), is_causal(visible)
        return softmax_attention_reference(
            q, k, v, visible=seen, window=window, sinks=sinks, scale=scale, causal=causal
        )
    repeats = q.shape[2] // k.shape[2]
    if q.shape[1] == 1 and repeats > 1:
        return _one_query(q, k, v, as_mask(visible), scale)
    k, v = (x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in (k, v))
    # torch's fused attention has no mask by the block, and falls back where widths differ.
    in_blocks = v.requires_grad or isinstance(visible, OwnKeys) or q.shape[-1] != v.shape[-1]
    if q.is_cpu and in_blocks and q.shape[1] == k.shape[1]:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        with torch.autocast("cpu", enabled=False):
            near = None if sinks else window  # sinks stand anywhere: every block starts at them
            out = blocked_attention(q.to(v.dtype), k.to(v.dtype), v, visible, near, factor)
        return out.to(q.dtype)
    visible = as_mask(visible)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if visible is None else visible[:, None],
        is_causal=bool(visible is None and q.shape[1] > 1),
        scale=scale,
    )
    return out.transpose(1, 2)


def scattered_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attend from queries that stand anywhere among the keys, as where only some tokens run.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, S, G, K]`.
        v: values `[B, S, G, V]`.
        visible: `[B, T, S]`, True where the query may see the key; None is all.

    Returns:
        `[B, T, H, V]` in q's dtype.
    """
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    heads = [x.transpose(1, 2) for x in (q, k.to(q.dtype), v.to(q.dtype))]
    mask = None if visible is None else visible[:, None]
    run = scattered_reference if runs_step_by_step() else F.scaled_dot_product_attention
    return run(*heads, attn_mask=mask).transpose(1, 2)


def scattered_reference(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, attn_mask: Tensor | None
) -> Tensor:
    """Plain twin: all scores, those out of sight at minus infinity."""
    scores = (q_BHTK.shape[-1] ** -0.5 * q_BHTK) @ k_BHSK.mT
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(dim=-1) @ v_BHSV


def _one_query(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float | None
) -> Tensor:
    """Decode with grouped heads: those that share keys stand as queries, and no key is repeated."""
    grouped = q[:, 0].unflatten(1, (k.shape[2], -1))
    mask = None if visible is None else visible[:, None]
    out = F.scaled_dot_product_attention(
        grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return out.flatten(1, 2)[:, None]


def softmax_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    visible: Tensor | None,
    window: int | None = None,
    sinks: int = 0,
    scale: float | None = None,
    causal: bool = True,
) -> Tensor:
    """Step-by-step twin of `softmax_attention`: one query at a time, over the keys so far, or all.

    The causal half, the window and its sinks alone are multiplied out, so that a FLOP counter sees
    what such attention costs; without `causal` all keys are.
    """
    length, keys = q.shape[1], k.shape[1]
    repeats = q.shape[2] // k.shape[2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(repeats, dim=2).transpose(1, 2) for x in (k, v))
    outputs = []
    for time in range(length):
        # Keys of this very call stand last.
        end = keys - length + time + 1 if causal else keys
        seen = None if visible is None else visible[:, time, :end]
        near_k, near_v = k[:, :, :end], v[:, :, :end]
        if window and seen is not None and window + sinks < end:
            near_k, near_v, seen = _gather_seen(near_k, near_v, seen, window + sinks)
        scores = (factor * q[:, time, :, None]) @ near_k.mT
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
        outputs.append((scores.softmax(dim=-1) @ near_v)[:, :, 0])
    return torch.stack(outputs, dim=1)


def _gather_seen(
    k_BHSK: Tensor, v_BHSV: Tensor, seen_BS: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and mask of no more than `most` keys, those in sight among them."""
    order = seen_BS.byte().argsort(dim=-1, descending=True, stable=True)[:, :most]
    at = order[:, None, :, None].expand(*k_BHSK.shape[:2], -1, 1)
    k, v = (x.gather(2, at.expand(-1, -1, -1, x.shape[-1])) for x in (k_BHSK, v_BHSV))
    return k, v, seen_BS.gather(1, order)
