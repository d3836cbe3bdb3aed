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
    return q * factor, k, v, log_decay, beta, state


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
    q, k, v, log_decay, beta, state = _prepare(q, k, v, log_decay, beta, scale, state)
    with torch.autocast(v.device.type, enabled=False):
        state, out_BHV = _step(q[:, 0], k[:, 0], v[:, 0], log_decay[:, 0], beta[:, 0], state)
    return out_BHV[:, None].to(dtype), state


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
    q, k, v = (to_chunks(pad_time(x, padding), chunk_size) for x in (q, k, v))
    log_decay, beta = (
        to_chunks(pad_time(x, padding)[..., None], chunk_size)[..., 0] for x in (log_decay, beta)
    )
    cumulative = document_cumsum(log_decay, mask)
    pairs = pair_decay(cumulative, mask)
    entering = entering_decay(cumulative, mask)[..., None]

    values, reads = _solve(k, v, beta, pairs, entering)
    written_keys = k * leaving_decay(cumulative, mask)[..., None]
    states, changes, last = _scan(
        values, reads, written_keys, carried_decay(cumulative, mask), state
    )
    out = (q * entering) @ states + ((q @ k.mT) * pairs) @ changes
    return from_chunks(out, length).to(dtype), last


def _solve(
    k: Tensor, v: Tensor, beta: Tensor, pairs: Tensor, entering: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve `(I + L) [u, w] = [beta v, beta k e^G]`, L strictly lower of `beta k k^T decay`."""
    k_beta = k * beta[..., None]
    lower = ((k_beta @ k.mT) * pairs).tril(-1)
    right = torch.cat([v * beta[..., None], k_beta * entering], dim=-1)
    solved = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    values, reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    return values, reads


def _scan(
    values: Tensor, reads: Tensor, written_keys: Tensor, carried: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the state over chunks.

    Returns:
        The state entering each chunk `[B, H, N, K, V]`, what each token changes `[B, H, N, C, V]`,
        and the last state.
    """
    states, changes = [], []
    chunks = (values.unbind(2), reads.unbind(2), written_keys.unbind(2), carried.unbind(2))
    for value, read, key, decay in zip(*chunks, strict=True):
        change = value - read @ state
        states.append(state)
        changes.append(change)
        state = decay[..., None, None] * state + key.mT @ change
    return torch.stack(states, dim=2), torch.stack(changes, dim=2), state
