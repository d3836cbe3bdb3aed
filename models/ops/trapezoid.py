"""Decayed linear attention under the trapezoidal rule: the recurrence of Mamba-3.

    S_t = a_t (S_{t-1} + b_t k_{t-1} v_{t-1}^T) + c_t k_t v_t^T,   a_t = exp(g_t),   o_t = S_t^T q_t

A token is written twice, when it comes and when the next one does: `c_t = lam_t dt_t` and
`b_t = (1 - lam_t) dt_t` (arXiv 2603.15569, section 3). So the state is `(S, k_t, v_t)`.

Both writes of a token are one write of weight `c_t + b_{t+1}` in decayed attention, but for the
token itself, which has only seen the first. The fast path therefore reads decayed attention over
keys *shifted by one*, where token t writes its predecessor, and adds its own `c_t (q_t . k_t) v_t`.
(Unshifted, taking the second write off again, the sums are the same, but the rounding of an output
would depend on the next token.)

Legend: B batch, T time, H heads, K key dim, V value dim.
"""

import torch
from torch import Tensor

from .chunks import same_document, working_dtype
from .decay import decayed_attention
from .twin import runs_step_by_step

Memory = tuple[Tensor, Tensor, Tensor]
"""`S [B, H, K, V]`, and the last token's key `[B, H, K]` and value `[B, H, V]`."""


def trapezoidal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    before: Tensor,
    now: Tensor,
    *,
    segments: Tensor | None = None,
    state: Memory | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Memory]:
    """Run the recurrence above over packed documents, a chunk at a time.

    Args:
        q: queries `[B, T, H, K]`, not scaled further.
        k: keys `[B, T, H, K]`.
        v: values `[B, T, H, V]`.
        log_decay: `g <= 0`, natural log, `[B, T, H]`.
        before: `b`, weight of the token before, `[B, T, H]`; no effect on a document's first token.
        now: `c`, weight of the token itself, `[B, T, H]`.
        segments: document ids `[B, T]`; None is one document.
        state: of the first token's document; None is zeros.
        chunk_size: tokens handled by one matrix product; any value gives the same result.

    Returns:
        Outputs `[B, T, H, V]` in v's dtype, and the state after the last token, at least float32.
    """
    wide = [x.to(working_dtype(v.dtype)) for x in (q, k, v, log_decay, before, now)]
    memory, key, value = (x.to(wide[0].dtype) for x in state or _empty(wide[1], wide[2]))
    start = memory, key, value
    if runs_step_by_step():
        out, state = trapezoidal_attention_reference(*wide, segments=segments, state=start)
    else:
        with torch.autocast(v.device.type, enabled=False):
            out, state = _shifted(*wide, segments=segments, state=start, chunk_size=chunk_size)
    return out.to(v.dtype), state


def trapezoidal_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    before: Tensor,
    now: Tensor,
    *,
    segments: Tensor | None,
    state: Memory,
) -> tuple[Tensor, Memory]:
    """Step-by-step twin of `trapezoidal_attention`: the plain recurrence, one token at a time."""
    memory_BHKV, key_BHK, value_BHV = state
    outputs = []
    for time in range(v.shape[1]):
        continues = same_document(segments, time)
        if continues is not None:
            memory_BHKV = memory_BHKV * continues[:, None, None, None]
            key_BHK = key_BHK * continues[:, None, None]
        written = (before[:, time, :, None] * key_BHK)[..., None] @ value_BHV[..., None, :]
        key_BHK, value_BHV = k[:, time], v[:, time]
        memory_BHKV = log_decay[:, time].exp()[..., None, None] * (memory_BHKV + written)
        written = (now[:, time, :, None] * key_BHK)[..., None] @ value_BHV[..., None, :]
        memory_BHKV = memory_BHKV + written
        outputs.append((q[:, time, :, None] @ memory_BHKV)[:, :, 0])
    return torch.stack(outputs, dim=1), (memory_BHKV, key_BHK, value_BHV)


def _empty(k: Tensor, v: Tensor) -> Memory:
    shape = (*k.shape[:1], *k.shape[2:])
    return k.new_zeros(*shape, v.shape[-1]), k.new_zeros(shape), torch.zeros_like(v[:, 0])


def _shifted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    before: Tensor,
    now: Tensor,
    *,
    segments: Tensor | None,
    state: Memory,
    chunk_size: int,
) -> tuple[Tensor, Memory]:
    memory, first_key, first_value = state
    # The incoming state holds its last token's first write already: only the second is due.
    weight = log_decay.exp() * (before + _later(now, torch.zeros_like(now[:, 0])))
    if segments is not None:
        starts = segments[:, 1:] != segments[:, :-1]
        weight = torch.cat([weight[:, :1], weight[:, 1:].masked_fill(starts[..., None], 0)], dim=1)
    out, memory = decayed_attention(
        q,
        _later(k, first_key) * weight[..., None],
        _later(v, first_value),
        log_decay,
        scale=1.0,
        segments=segments,
        state=memory,
        chunk_size=chunk_size,
    )
    own = now * (q * k).sum(dim=-1)
    out = torch.addcmul(out, own[..., None], v)
    last_key, last_value = k[:, -1].clone(), v[:, -1].clone()  # not views that keep all alive
    written = (now[:, -1, :, None] * last_key)[..., None] * last_value[..., None, :]
    return out, (memory + written, last_key, last_value)


def _later(x: Tensor, first: Tensor) -> Tensor:
    """Shift `[B, T, ...]` by one token, beginning with `first` `[B, ...]`."""
    return torch.cat([first[:, None], x[:, :-1]], dim=1)
