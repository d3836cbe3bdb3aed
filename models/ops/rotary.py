"""Rotary position embedding (RoFormer, arXiv 2104.09864, section 3.2), restarting at each document.

Legend: B batch, T time, H heads, D head dim.
"""

from functools import lru_cache

import torch
from torch import Tensor


def rotate(x_BTHD: Tensor, positions_BT: Tensor, base: float, max_positions: int) -> Tensor:
    """Rotate the two halves of each head by `position * base ** (-2 i / D)`.

    `max_positions` is any bound above the largest position (it sizes the cached table).
    """
    cosine, sine = _table(_round_up(max_positions), x_BTHD.shape[-1], base, x_BTHD.device)
    cosine_BT1D, sine_BT1D = (
        table[positions_BT][:, :, None].to(x_BTHD.dtype) for table in (cosine, sine)
    )
    first, second = x_BTHD.chunk(2, dim=-1)
    return torch.cat(
        [
            first * cosine_BT1D - second * sine_BT1D,
            second * cosine_BT1D + first * sine_BT1D,
        ],
        dim=-1,
    )


@lru_cache(maxsize=32)
def _table(
    positions: int, head_dim: int, base: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[positions, D/2]`, in float64 so that float64 tests see no noise."""
    with torch.inference_mode(False):
        steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
        angles = torch.outer(
            torch.arange(positions, dtype=torch.float64, device=device), base ** (-steps / head_dim)
        )
        return angles.cos(), angles.sin()


def _round_up(length: int) -> int:
    return 1 << max(length - 1, 255).bit_length()
