"""The delta-rule family: chunk primitives behind DeltaNet, GDN, KDA, GDN-2 and RWKV-7.

    delta_rule    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T
    erase_write   S_t = (I - k_t e_t^T) Diag(exp g_t) S_{t-1} + k_t v_t^T
    dplr          S_t = (Diag(exp g_t) + b_t a_t^T) S_{t-1} + k_t v_t^T
    all           o_t = scale * S_t^T q_t

The decay is one number for a head `[B, T, H]`, or one for each key channel `[B, T, H, K]`. Nothing
is normalised inside: the caller does that.

Sources: Gated DeltaNet (arXiv 2412.06464, section 3), Kimi Delta Attention (arXiv 2510.26692,
section 3), Gated DeltaNet-2 (arXiv 2605.22791), RWKV-7 (arXiv 2503.14456).

Legend: B batch, T time, H heads, K key dim, V value dim.
"""

import torch
from torch import Tensor

from ..kernels import find
from .channel_decay import chunked_dplr, chunked_erase_write
from .delta_chunks import chunked_delta_rule
from .steps import by_channel, check_decay, column, prepare, read, row, step_through
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
    """Run the gated delta rule over packed documents, a chunk at a time.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, T, H, K]`, l2-normalised by the caller.
        v: values `[B, T, H, V]`.
        log_decay: `g <= 0`, natural log, `[B, T, H]` (GDN) or `[B, T, H, K]` (KDA).
        beta: write strength `[B, T, H]`, in (0, 1), or (0, 2) for negative eigenvalues
            (arXiv 2411.12537).
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
    _check(q, v, log_decay, k=k)
    _check_beta(beta, v)
    if runs_step_by_step():
        return delta_rule_reference(
            q, k, v, log_decay, beta, scale=scale, segments=segments, state=state
        )
    kernel = find("delta_rule", v, q, log_decay) if q.shape[1] > 1 else None
    if kernel is not None:
        return kernel(q, k, v, log_decay, beta, scale=scale, segments=segments, state=state)
    dtype = v.dtype
    q, v, k, log_decay, beta, state = prepare(q, v, (k, log_decay, beta), scale, state)
    with torch.autocast(v.device.type, enabled=False):
        if q.shape[1] > 1 and log_decay.dim() == 3:
            inputs = (q, k, v, log_decay, beta)
            out, state = chunked_delta_rule(*inputs, segments, state, chunk_size)
        else:
            erase, v = beta[..., None] * k, beta[..., None] * v
            run = _erase_write_once if q.shape[1] == 1 else chunked_erase_write
            out, state = run(q, k, erase, v, by_channel(log_decay), segments, state, chunk_size)
    return out.to(dtype), state


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
    _check(q, v, log_decay, k=k)
    _check_beta(beta, v)
    dtype = v.dtype
    q, v, k, log_decay, beta, state = prepare(q, v, (k, log_decay, beta), scale, state)
    inputs = (q, k, beta[..., None] * k, beta[..., None] * v, by_channel(log_decay))
    out, state = step_through(_erase_write_step, inputs, state, segments)
    return out.to(dtype), state


def erase_write(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the delta rule whose erased and written parts are gated apart, a chunk at a time.

    What the state holds under `erase` is taken off it under `k`. The gated delta rule is the case
    `erase = beta k`, `v = beta v`; Gated DeltaNet-2 has vectors for both gates.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys that write, `[B, T, H, K]`.
        erase: keys that read what is to go, `[B, T, H, K]`.
        v: values `[B, T, H, V]`, gated by the caller.
        log_decay: `g <= 0`, natural log, `[B, T, H]` or `[B, T, H, K]`.
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
    _check(q, v, log_decay, k=k, erase=erase)
    if runs_step_by_step():
        return erase_write_reference(
            q, k, erase, v, log_decay, scale=scale, segments=segments, state=state
        )
    kernel = find("erase_write", v, q, log_decay) if q.shape[1] > 1 else None
    if kernel is not None:
        return kernel(q, k, erase, v, log_decay, scale=scale, segments=segments, state=state)
    dtype = v.dtype
    q, v, k, erase, log_decay, state = prepare(q, v, (k, erase, log_decay), scale, state)
    run = _erase_write_once if q.shape[1] == 1 else chunked_erase_write
    with torch.autocast(v.device.type, enabled=False):
        out, state = run(q, k, erase, v, by_channel(log_decay), segments, state, chunk_size)
    return out.to(dtype), state


def erase_write_reference(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step-by-step twin of `erase_write`: same arguments and results, one token at a time."""
    _check(q, v, log_decay, k=k, erase=erase)
    dtype = v.dtype
    q, v, k, erase, log_decay, state = prepare(q, v, (k, erase, log_decay), scale, state)
    inputs = (q, k, erase, v, by_channel(log_decay))
    out, state = step_through(_erase_write_step, inputs, state, segments)
    return out.to(dtype), state


def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the diagonal-plus-low-rank recurrence over packed documents, a chunk at a time.

    `a` reads the state *before* its decay. RWKV-7 is the case `a = -kk`, `b = kk * a_gate`; the
    delta rule is `a = exp(g) k`, `b = -beta k`, with `beta v` for values.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, T, H, K]`.
        v: values `[B, T, H, V]`.
        a: what reads the state, `[B, T, H, K]`.
        b: where that is added, `[B, T, H, K]`.
        log_decay: `g <= 0`, natural log, `[B, T, H]` or `[B, T, H, K]`.
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
    _check(q, v, log_decay, k=k, a=a, b=b)
    if runs_step_by_step():
        return dplr_reference(q, k, v, a, b, log_decay, scale=scale, segments=segments, state=state)
    kernel = find("dplr", v, q, log_decay) if q.shape[1] > 1 else None
    if kernel is not None:
        return kernel(q, k, v, a, b, log_decay, scale=scale, segments=segments, state=state)
    dtype = v.dtype
    q, v, k, a, b, log_decay, state = prepare(q, v, (k, a, b, log_decay), scale, state)
    run = _dplr_once if q.shape[1] == 1 else chunked_dplr
    with torch.autocast(v.device.type, enabled=False):
        out, state = run(q, k, v, a, b, by_channel(log_decay), segments, state, chunk_size)
    return out.to(dtype), state


def dplr_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Step-by-step twin of `dplr`: same arguments and results, one token at a time."""
    _check(q, v, log_decay, k=k, a=a, b=b)
    dtype = v.dtype
    q, v, k, a, b, log_decay, state = prepare(q, v, (k, a, b, log_decay), scale, state)
    inputs = (q, k, v, a, b, by_channel(log_decay))
    out, state = step_through(_dplr_step, inputs, state, segments)
    return out.to(dtype), state


def _check(q: Tensor, v: Tensor, log_decay: Tensor, **keys: Tensor) -> None:
    if q.shape[:3] != v.shape[:3] or any(key.shape != q.shape for key in keys.values()):
        named = {"q": q, **keys}
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())
        raise ValueError(
            f"{shapes} and v {tuple(v.shape)} don't fit: {', '.join(named)} share one shape "
            "[B, T, H, K], v is [B, T, H, V]"
        )
    check_decay(log_decay, v.shape[:3], q.shape[-1])


def _check_beta(beta: Tensor, v: Tensor) -> None:
    if beta.shape != v.shape[:3]:
        raise ValueError(f"beta is {tuple(beta.shape)}, expected [B, T, H] = {tuple(v.shape[:3])}")


def _erase_write_step(
    q: Tensor, k: Tensor, erase: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    decayed = column(log_decay.exp()) * state
    state = decayed + column(k) @ row(v - read(erase, decayed))
    return state, read(q, state)


def _dplr_step(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    added = column(b) @ row(read(a, state)) + column(k) @ row(v)
    state = column(log_decay.exp()) * state + added
    return state, read(q, state)


def _erase_write_once(
    q: Tensor,
    k: Tensor,
    erase: Tensor,
    v: Tensor,
    log_decay: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """One token, elementwise where that is faster than a product; the last two don't matter."""
    q, k, erase, v, log_decay = (x[:, 0] for x in (q, k, erase, v, log_decay))
    decayed = column(log_decay.exp()) * state
    # Without gradients nobody else holds `decayed`, and the state is what takes time here.
    update = decayed.addcmul if torch.is_grad_enabled() else decayed.addcmul_
    state = update(column(k), row(v - read(erase, decayed)))
    return read(q, state)[:, None], state


def _dplr_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    segments: Tensor | None,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    q, k, v, a, b, log_decay = (x[:, 0] for x in (q, k, v, a, b, log_decay))
    decayed, recalled = column(log_decay.exp()) * state, read(a, state)
    if torch.is_grad_enabled():
        state = decayed.addcmul(column(b), row(recalled)).addcmul(column(k), row(v))
    else:
        state = decayed.addcmul_(column(b), row(recalled)).addcmul_(column(k), row(v))
    return read(q, state)[:, None], state
