"""Rotary position embedding (RoFormer, arXiv 2104.09864, section 3.2), restarting at each document.

Legend: B batch, T time, H heads, D head dim.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .in_place import plus_product

Positions = Tensor | slice
"""Positions `[B, T]`, or the T that all rows share."""


def rotate(
    x_BTHD: Tensor, positions: Positions, base: float, max_positions: int, width: int | None = None
) -> Tensor:
    """Rotate the two halves of each head by `position * base ** (-2 i / D)`.

    `max_positions` is any bound above the largest position (it sizes the cached table). With a
    `width` only the first so many dims are turned, as if they were the whole head (GPT-NeoX, arXiv
    2204.06745, section 2.1).
    """
    if width is not None and width < x_BTHD.shape[-1]:
        turned, rest = x_BTHD[..., :width], x_BTHD[..., width:]
        return torch.cat([rotate(turned, positions, base, max_positions), rest], dim=-1)
    rows, head_dim = _round_up(max_positions), x_BTHD.shape[-1]
    cosine, sine = _table(rows, head_dim, base, x_BTHD.dtype, x_BTHD.device)
    if torch.is_grad_enabled():
        return _Rotation.apply(x_BTHD, cosine[positions], sine[positions])
    return _turn(x_BTHD, cosine[positions], sine[positions], 1)


class _Rotation(torch.autograd.Function):
    """A rotation; its gradient is turned back by the same angle, in half of autograd's passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(gradients[0], cosine, sine, -1), None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, sign: int) -> Tensor:
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return plus_product(x * cosine, swapped, sine, sign)


@lru_cache(maxsize=32)
def _table(
    positions: int, head_dim: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`[cos, cos]` and `[-sin, sin]`, `[positions, 1, D]`, computed in float64."""
    with torch.inference_mode(False):
        steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
        frequencies = base ** (-steps / head_dim)
        turns = torch.arange(positions, dtype=torch.float64, device=device)
        angle = torch.outer(turns, frequencies)[:, None]
        cosine, sine = angle.cos(), angle.sin()
        cosine, sine = torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)
        return cosine.to(dtype), sine.to(dtype)


def forget_tables() -> None:
    """Drop the cached tables: those made of tensors without contents are of no use to others."""
    _table.cache_clear()


def _round_up(length: int) -> int:
    return 1 << max(length - 1, 255).bit_length()
