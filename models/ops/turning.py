"""Rotations by angles that are computed on the way, and running sums of them within documents.

    [a, b] -> [a cos(phi) - b sin(phi), a sin(phi) + b cos(phi)]      for neighbouring channels a, b
    phi_t = phi_{t-1} + d_t  (mod 2 pi),   phi = 0 before a document

Unlike `rotate` (`.rotary`) these need no table and no bound on positions, and angles may depend on
the input (Mamba-3, arXiv 2603.15569, section 3).

Legend: B batch, T time, N chunks, C tokens in a chunk, H heads, K head dim, J turned pairs.
"""

import math

import torch
from torch import Tensor

from .chunks import chunk_mask, pad_time, padding_to, same_document
from .twin import runs_step_by_step

TURN = 2 * math.pi


def turn_pairs(x_BTHK: Tensor, angle: Tensor) -> Tensor:
    """Rotate the first J pairs of neighbouring channels; the other channels stay.

    Args:
        x_BTHK: K is at least 2 J.
        angle: radians, `[B or 1, T, H or 1, J]`; use float32 or better.

    Returns:
        `[B, T, H, K]` in x's dtype.
    """
    pairs = angle.shape[-1]
    turned, rest = x_BTHK.split([2 * pairs, x_BTHK.shape[-1] - 2 * pairs], dim=-1)
    a, b = turned.unflatten(-1, (pairs, 2)).unbind(-1)
    cosine, sine = angle.cos().to(x_BTHK.dtype), angle.sin().to(x_BTHK.dtype)
    turned = torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def position_angles(positions_BT: Tensor, pairs: int, base: float) -> Tensor:
    """Rotary angles `position * base ** (-j / J)`, float64, `[B or 1, T, 1, J]` (2104.09864)."""
    steps = torch.arange(pairs, dtype=torch.float64, device=positions_BT.device)
    return positions_BT[..., None, None] * base ** (-steps / pairs)


def cumulative_angles(
    steps_BTHJ: Tensor,
    *,
    segments: Tensor | None = None,
    start: Tensor | None = None,
    chunk_size: int = 64,
) -> Tensor:
    """Add up angles within each document, modulo a full turn, a chunk at a time.

    The sum restarts by a product with the mask of documents, not by a difference of two sums, so
    the rounding of one document never reaches the next.

    Args:
        steps_BTHJ: how far each token turns, radians, float32 or better.
        segments: document ids `[B, T]`; None is one document.
        start: angle before the first token, of its document, `[B, H, J]`; None is zero.
        chunk_size: tokens summed by one matrix product.

    Returns:
        Angles `[B, T, H, J]`, from 0 to a full turn, the token's own step included.
    """
    if start is None:
        start = steps_BTHJ.new_zeros(steps_BTHJ.shape[0], *steps_BTHJ.shape[2:])
    if runs_step_by_step():
        return cumulative_angles_reference(steps_BTHJ, segments=segments, start=start)
    if steps_BTHJ.shape[1] == 1:
        return (start[:, None] + steps_BTHJ).remainder(TURN)
    with torch.autocast(steps_BTHJ.device.type, enabled=False):
        return _chunked(steps_BTHJ, segments, start, chunk_size)


def cumulative_angles_reference(
    steps_BTHJ: Tensor, *, segments: Tensor | None, start: Tensor
) -> Tensor:
    """Step-by-step twin of `cumulative_angles`."""
    angle_BHJ, angles = start, []
    for time in range(steps_BTHJ.shape[1]):
        continues = same_document(segments, time)
        if continues is not None:
            angle_BHJ = angle_BHJ * continues[:, None, None]
        angle_BHJ = (angle_BHJ + steps_BTHJ[:, time]).remainder(TURN)
        angles.append(angle_BHJ)
    return torch.stack(angles, dim=1)


def _chunked(steps: Tensor, segments: Tensor | None, start: Tensor, chunk_size: int) -> Tensor:
    batch, length, heads, pairs = steps.shape
    chunk_size = min(chunk_size, length)
    padding = padding_to(length, chunk_size)
    mask = chunk_mask(segments, (batch, length + padding), chunk_size, steps.device)
    steps_BNCX = pad_time(steps.flatten(2), padding).unflatten(1, (-1, chunk_size))
    within_BNCX = mask.causal_BNCC.to(steps.dtype) @ steps_BNCX
    angle_BX, entering = start.flatten(1), []
    for last_BX, carries_B in zip(
        within_BNCX[:, :, -1].unbind(1), mask.carries_BN.unbind(1), strict=True
    ):
        entering.append(angle_BX)
        angle_BX = (angle_BX * carries_B[:, None] + last_BX).remainder(TURN)
    across_BNCX = torch.stack(entering, dim=1)[:, :, None] * mask.reads_BNC[..., None]
    angles = (within_BNCX + across_BNCX).remainder(TURN).flatten(1, 2)[:, :length]
    return angles.unflatten(-1, (heads, pairs))
