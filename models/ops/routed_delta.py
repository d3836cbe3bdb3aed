"""The gated delta rule over several memories, of which each token writes and reads a few.

    S^m_t = exp(g_t) (I - beta_t k^m_t k^m_t^T) S^m_{t-1} + beta_t k^m_t v^m_t^T    m chosen at t
    S^m_t = S^m_{t-1}                                                               m not chosen
    o_t   = scale * sum over the chosen m of  w^m_t S^m_t^T q_t

Source: Mixture-of-Memories (arXiv 2502.13685, section 3.2). A memory that a token doesn't choose is
left as it is: neither decayed nor written.

Legend: B batch, T time, M memories, J chosen, H heads, K key dim, V value dim.
"""

import torch
from torch import Tensor

from .chunks import same_document, working_dtype
from .delta import delta_rule


def routed_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    weights: Tensor,
    chosen: Tensor,
    *,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence above by chunks, every memory as heads of its own.

    A memory that isn't chosen has neither write strength nor decay there, so all memories are
    multiplied out: M / J times the products that the recurrence needs.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys of every memory `[B, T, M, H, K]`, l2-normalised by the caller.
        v: values of every memory `[B, T, M, H, V]`.
        log_decay: `g <= 0`, `[B, T, H]`.
        beta: write strength `[B, T, H]`.
        weights: of what the chosen memories say `[B, T, J]`.
        chosen: their indices `[B, T, J]`, distinct.
        segments: document ids `[B, T]`; None is one document.
        state: `[B, M*H, K, V]`, of the first token's document; None is zeros.
        chunk_size: tokens handled by one triangular solve.

    Returns:
        Outputs `[B, T, H, V]`, and the state of the last token's document `[B, M*H, K, V]`.
    """
    memories = k.shape[2]
    hit_BTM = torch.zeros_like(k[..., 0, 0]).scatter(2, chosen, 1.0)
    weight_BTM = torch.zeros_like(hit_BTM).scatter(2, chosen, weights.to(hit_BTM.dtype))
    gates = (
        (x[:, :, None] * hit_BTM[..., None].to(x.dtype)).flatten(2, 3) for x in (log_decay, beta)
    )
    out, state = delta_rule(
        q.repeat(1, 1, memories, 1),
        k.flatten(2, 3),
        v.flatten(2, 3),
        *gates,
        segments=segments,
        state=state,
        chunk_size=chunk_size,
    )
    by_memory = out.unflatten(2, (memories, -1))
    return (by_memory * weight_BTM[..., None, None]).sum(dim=2), state


def routed_delta_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    weights: Tensor,
    chosen: Tensor,
    *,
    memories: int,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step-by-step twin of `routed_delta`, which touches the chosen memories only.

    Arguments as there, but `k [B, T, J, H, K]` and `v [B, T, J, H, V]` are of the chosen memories,
    and `memories` is M.
    """
    dtype, heads = v.dtype, q.shape[2]
    if state is None:
        shape = (v.shape[0], memories * heads, q.shape[-1], v.shape[-1])
        state = v.new_zeros(shape, dtype=working_dtype(dtype))
    q, k, v, log_decay, beta = (x.to(state.dtype) for x in (q, k, v, log_decay, beta))
    memory_BMHKV, outputs = state.unflatten(1, (memories, heads)), []
    for time in range(q.shape[1]):
        continues = same_document(segments, time)
        if continues is not None:
            memory_BMHKV = memory_BMHKV * continues[:, None, None, None, None]
        now = (q[:, time], k[:, time], v[:, time], log_decay[:, time], beta[:, time])
        memory_BMHKV, read_BJHV = _step(*now, chosen[:, time], memory_BMHKV)
        outputs.append((read_BJHV * weights[:, time, :, None, None].to(state.dtype)).sum(dim=1))
    scaled = torch.stack(outputs, dim=1) * q.shape[-1] ** -0.5
    return scaled.to(dtype), memory_BMHKV.flatten(1, 2)


def _step(
    q_BHK: Tensor,
    k_BJHK: Tensor,
    v_BJHV: Tensor,
    log_decay_BH: Tensor,
    beta_BH: Tensor,
    chosen_BJ: Tensor,
    memory_BMHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    index = chosen_BJ[:, :, None, None, None].expand(-1, -1, *memory_BMHKV.shape[2:])
    decayed = log_decay_BH.exp()[:, None, :, None, None] * memory_BMHKV.gather(1, index)
    recalled = (k_BJHK[..., None, :] @ decayed)[..., 0, :]
    change = beta_BH[:, None, :, None] * (v_BJHV - recalled)
    written = decayed + k_BJHK[..., :, None] @ change[..., None, :]
    return memory_BMHKV.scatter(1, index, written), (q_BHK[:, None, :, None] @ written)[..., 0, :]
