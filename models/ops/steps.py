"""What recurrences over a matrix per head share: precision, the first state, one token at a time.

Legend: B batch, T time, H heads, K key dim, V value dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .chunks import same_document, working_dtype

Step = Callable[..., tuple[Tensor, Tensor]]
"""`(*inputs of one token, state) -> (state, output [B, H, V])`."""


def prepare(
    q: Tensor, v: Tensor, others: tuple[Tensor, ...], scale: float | None, state: Tensor | None
) -> tuple[Tensor, ...]:
    """Bring everything to the working precision, scale the query, begin from zeros.

    Args:
        q: queries `[B, T, G, K]`; `scale` (default `K ** -0.5`) multiplies them.
        v: values `[B, T, H, V]`, whose dtype decides.
        others: further inputs.
        scale: multiplies the queries.
        state: `[B, H, K, V]`; None is zeros.

    Returns:
        `(q, v, *others, state)`.
    """
    dtype = working_dtype(v.dtype)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], q.shape[-1], v.shape[-1], dtype=dtype)
    q, v, *rest = (x.to(dtype) for x in (q, v, *others, state))
    return (q if factor == 1 else q * factor, v, *rest)


def step_through(
    step: Step, inputs: tuple[Tensor, ...], state: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run `step` on one token after another of inputs `[B, T, ...]`, from zeros in each document.

    Returns:
        Outputs `[B, T, H, V]`, and the last state.
    """
    outputs = []
    for time in range(inputs[0].shape[1]):
        continues = same_document(segments, time)
        if continues is not None:
            state = state * continues[:, None, None, None]
        state, out_BHV = step(*(x[:, time] for x in inputs), state)
        outputs.append(out_BHV)
    return torch.stack(outputs, dim=1), state


def by_channel(log_decay: Tensor) -> Tensor:
    """View a decay by head `[B, T, H]` as `[B, T, H, 1]`; one by channel stays `[B, T, H, K]`."""
    return log_decay if log_decay.dim() == 4 else log_decay[..., None]


def check_decay(log_decay: Tensor, heads: tuple[int, ...], keys: int) -> None:
    """Raise ValueError unless `log_decay` is `[B, T, H]` or `[B, T, H, K]`."""
    if log_decay.shape not in (heads, (*heads, keys)):
        raise ValueError(
            f"log_decay is {tuple(log_decay.shape)}, expected [B, T, H] = {tuple(heads)} or "
            f"[B, T, H, K] = {(*heads, keys)}"
        )


def column(x_BHK: Tensor) -> Tensor:
    """`[..., K, 1]`."""
    return x_BHK[..., :, None]


def row(x_BHV: Tensor) -> Tensor:
    """`[..., 1, V]`."""
    return x_BHV[..., None, :]


def read(key_BHK: Tensor, state_BHKV: Tensor) -> Tensor:
    """What the state holds under a key, `S^T k`, as a matrix product: `[B, H, V]`."""
    return (row(key_BHK) @ state_BHKV)[..., 0, :]
