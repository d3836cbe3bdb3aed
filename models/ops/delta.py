"""The gated delta rule: the chunk primitive behind DeltaNet and Gated DeltaNet.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T      o_t = scale * S_t^T q_t

Keys are expected l2-normalised by the caller; beta in (0, 1), or (0, 2) to allow negative
eigenvalues (arXiv 2411.12537). Source: Gated DeltaNet (arXiv 2412.06464, section 3), chunked with
the WY form of DeltaNet (arXiv 2406.06484, section 3.2).

Legend: B batch, T time, N chunks, C tokens in a chunk, H heads, K key dim, V value dim.
"""

import torch
from torch import Tensor

from .chunks import (
    carried_decay,
    chunk_mask,
    decayed_pairs,
    document_cumsum,
    entering_decay,
    from_chunks,
    leaving_decay,
    pad_time,
    padding_to,
    pair_decay,
    same_document,
    to_chunks,
    working_dtype,
)
from .twin import runs_step_by_step


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence above over packed documents, a chunk at a time.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, T, H, K]`, l2-normalised by the caller.
        v: values `[B, T, H, V]`.
        log_decay: `g <= 0`, natural log, `[B, T, H]`.
        beta: write strength `[B, T, H]`.
        scale: multiplies the queries; default `K ** -0.5`.
        segments: document ids `[B, T]`, each document contiguous; None is one document.
        state: `[B, H, K, V]`, of the first token's document; None is zeros.
        chunk_size: tokens handled by one triangular solve; any value gives the same result.

    Returns:
        Outputs `[B, T, H, V]` in v's dtype, and the state of the last token's document
        `[B, H, K, V]`, at least float32.

    Raises:
        ValueError: if shapes don't fit together.
    """
    _check(q, k, v, log_decay, beta)
    if runs_step_by_step():
        return delta_rule_reference(
            q, k, v, log_decay, beta, scale=scale, segments=segments, state=state
        )
    if q.shape[1] == 1:
        return _single_step(q, k, v, log_decay, beta, scale, state)
    with torch.autocast(v.device.type, enabled=False):
        return _chunked(q, k, v, log_decay, beta, scale, segments, state, chunk_size)


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step-by-step twin of `delta_rule`: same arguments and results, one token at a time."""
    dtype = v.dtype
    q, k, v, log_decay, beta, state_BHKV = _prepare(q, k, v, log_decay, beta, scale, state)
    outputs = []
    for time in range(v.shape[1]):
        continues = same_document(segments, time)
        if continues is not None:
            state_BHKV = state_BHKV * continues[:, None, None, None]
        now = (q[:, time], k[:, time], v[:, time], log_decay[:, time], beta[:, time])
        state_BHKV, out_BHV = _step(*now, state_BHKV)
        outputs.append(out_BHV)
    return torch.stack(outputs, dim=1).to(dtype), state_BHKV


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> None:
    if q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit: "
            "q and k share one shape [B, T, H, K], v is [B, T, H, V]"
        )
    for name, x in (("log_decay", log_decay), ("beta", beta)):
        if x.shape != v.shape[:3]:
            raise ValueError(
                f"{name} is {tuple(x.shape)}, expected [B, T, H] = {tuple(v.shape[:3])}"
            )


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = working_dtype(v.dtype)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], q.shape[-1], v.shape[-1], dtype=dtype)
    q, k, v, log_decay, beta, state = (x.to(dtype) for x in (q, k, v, log_decay, beta, state))
    return q if factor == 1 else q * factor, k, v, log_decay, beta, state


def _step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    log_decay_BH: Tensor,
    beta_BH: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    decayed = log_decay_BH.exp()[..., None, None] * state_BHKV
    recalled_BHV = (k_BHK[..., None, :] @ decayed)[..., 0, :]
    change_BHV = beta_BH[..., None] * (v_BHV - recalled_BHV)
    state_BHKV = decayed + k_BHK[..., :, None] @ change_BHV[..., None, :]
    return state_BHKV, (q_BHK[..., None, :] @ state_BHKV)[..., 0, :]


def _single_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    inputs = _prepare(q, k, v, log_decay, beta, scale, state)
    q, k, v, log_decay, beta = (x.transpose(1, 2) for x in inputs[:-1])  # [B, H, 1, K]
    with torch.autocast(v.device.type, enabled=False):
        decayed = log_decay.exp()[..., None] * inputs[-1]
        change = beta[..., None] * (v - k @ decayed)
        # Without gradients nobody else holds `decayed`, and the state is what takes time here.
        update = decayed.addcmul if torch.is_grad_enabled() else decayed.addcmul_
        state = update(k.mT, change)
        out_BH1V = q @ state
    return out_BH1V.transpose(1, 2).to(dtype), state


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float | None,
    segments: Tensor | None,
    state: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    dtype, (batch, length) = v.dtype, v.shape[:2]
    q, k, v, log_decay, beta, state = _prepare(q, k, v, log_decay, beta, scale, state)
    chunk_size = min(chunk_size, length)
    padding = padding_to(length, chunk_size)
    mask = chunk_mask(segments, (batch, length + padding), chunk_size, v.device)
    log_decay = pad_time(log_decay, padding).unflatten(1, (-1, chunk_size))
    cumulative = document_cumsum(log_decay, mask).transpose(0, 1)  # [N, B, H, C]
    mask = mask.chunk_first()
    q, k, v, beta = (
        to_chunks(pad_time(x, padding), chunk_size) for x in (q, k, v, beta[..., None])
    )
    pairs = pair_decay(cumulative, mask)
    entering = entering_decay(cumulative, mask)[..., None]

    solved = _solve(k, beta, pairs, cumulative)
    values, reads = solved @ v, solved @ (k * -entering)
    written_keys = k * leaving_decay(cumulative, mask)[..., None]
    states, changes, last = _scan(
        values, reads, written_keys, carried_decay(cumulative, mask), state
    )
    out = (q * entering) @ states + decayed_pairs(q @ k.mT, pairs, cumulative) @ changes
    return from_chunks(out, length).to(dtype), last


def _solve(k: Tensor, beta: Tensor, pairs: Tensor, cumulative: Tensor) -> Tensor:
    """Return `(I + L)^{-1} beta`, with L the strictly lower part of `beta (k k^T) decay`."""
    # The solver reads only what is below the diagonal.
    lower = decayed_pairs((k * beta) @ k.mT, pairs, cumulative)
    identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)
    return inverse * beta.mT


def _scan(
    values: Tensor, reads: Tensor, written_keys: Tensor, carried: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the state over chunks; `reads` are negative: what the state says is taken off.

    Returns:
        The state entering each chunk `[N, B, H, K, V]`, what each token changes
        `[N, B, H, C, V]`, and the last state.
    """
    states, changes = [], []
    batch, state = state.shape[:2], state.flatten(0, 1)
    flat = (x.flatten(1, 2).unbind() for x in (values, reads, written_keys.mT, carried))
    for value, read, key, decay in zip(*flat, strict=True):
        change = torch.baddbmm(value, read, state)
        states.append(state)
        changes.append(change)
        state = torch.baddbmm(decay[:, None, None] * state, key, change)
    entering, changed = (torch.stack(parts).unflatten(1, batch) for parts in (states, changes))
    return entering, changed, state.unflatten(0, batch)
