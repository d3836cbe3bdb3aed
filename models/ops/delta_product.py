"""Several delta-rule steps for each token: the primitive behind Gated DeltaProduct.

    S_{t,0} = Diag(exp g_t) S_{t-1}
    S_{t,i} = (I - beta_{t,i} k_{t,i} k_{t,i}^T) S_{t,i-1} + beta_{t,i} k_{t,i} v_{t,i}^T
    S_t = S_{t,P},  i = 1 .. P,  o_t = scale * S_t^T q_t

A product of P generalised Householder matrices moves the state further than one can: with P = 2 a
token can rotate, which swaps and permutations need. Source: DeltaProduct (arXiv 2502.10297,
section 3).

Legend: B batch, T time, P steps of a token, H heads, K key dim, V value dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .delta import delta_rule
from .steps import by_channel, column, prepare, read, row, step_through
from .twin import runs_step_by_step


def delta_product(
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
    """Run the recurrence above over packed documents, as a delta rule on P times as many steps.

    The decay stands at the first step of a token, the query at the last.

    Args:
        q: queries `[B, T, H, K]`.
        k: keys `[B, T, P, H, K]`, l2-normalised by the caller.
        v: values `[B, T, P, H, V]`.
        log_decay: `g <= 0`, natural log, `[B, T, H]` or `[B, T, H, K]`.
        beta: write strengths `[B, T, P, H]`, in (0, 1), or (0, 2) for reflections.
        scale: multiplies the queries; default `K ** -0.5`.
        segments: document ids `[B, T]`, each document contiguous; None is one document.
        state: `[B, H, K, V]`, of the first token's document; None is zeros.
        chunk_size: steps handled by one triangular solve; any value gives the same result.

    Returns:
        Outputs `[B, T, H, V]` in v's dtype, and the state of the last token's document
        `[B, H, K, V]`, at least float32.

    Raises:
        ValueError: if shapes don't fit together.
    """
    _check(q, k, v, beta)
    if runs_step_by_step():
        return delta_product_reference(
            q, k, v, log_decay, beta, scale=scale, segments=segments, state=state
        )
    steps = k.shape[2]
    if q.shape[1] == 1:
        return _once(q, k, v, log_decay, beta, scale, state)
    expanded = (_at_step(q, steps - 1, steps), k, v, _at_step(log_decay, 0, steps), beta)
    out, state = delta_rule(
        *(x.flatten(1, 2) for x in expanded),
        scale=scale,
        segments=None if segments is None else segments.repeat_interleave(steps, dim=1),
        state=state,
        chunk_size=chunk_size,
    )
    return out.unflatten(1, (-1, steps))[:, :, -1], state


def delta_product_reference(
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
    """Step-by-step twin of `delta_product`: same arguments and results, one token at a time."""
    _check(q, k, v, beta)
    others = (k, v, by_channel(log_decay), beta)
    q_, _, *inputs, start = prepare(q, v[:, :, 0], others, scale, state)
    out, last = step_through(_step, (q_, *inputs), start, segments)
    return out.to(v.dtype), last


def _check(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> None:
    batch, length, heads, keys = q.shape
    steps = k.shape[2]
    if k.shape != (batch, length, steps, heads, keys) or v.shape[:4] != k.shape[:4]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} don't fit: q is "
            "[B, T, H, K], k is [B, T, P, H, K], v is [B, T, P, H, V]"
        )
    if beta.shape != v.shape[:4]:
        raise ValueError(
            f"beta is {tuple(beta.shape)}, expected [B, T, P, H] = {tuple(v.shape[:4])}"
        )


def _step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    state = column(log_decay.exp()) * state
    for key, value, strength in zip(k.unbind(1), v.unbind(1), beta.unbind(1), strict=True):
        change = strength[..., None] * (value - read(key, state))
        state = state + column(key) @ row(change)
    return state, read(q, state)


def _at_step(x: Tensor, step: int, steps: int) -> Tensor:
    """Put `[B, T, ...]` at one step of each token, zeros at the others: `[B, T, P, ...]`."""
    around = (0, 0) * (x.dim() - 2) + (step, steps - 1 - step)
    return F.pad(x[:, :, None], around)


def _once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One token: its steps one after another, without a triangular solve."""
    out, decay = None, log_decay
    for key, value, strength in zip(k.unbind(2), v.unbind(2), beta.unbind(2), strict=True):
        out, state = delta_rule(q, key, value, decay, strength, scale=scale, state=state)
        decay = torch.zeros_like(log_decay)
    assert out is not None and state is not None
    return out, state
