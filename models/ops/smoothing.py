"""Exponential smoothing along time, each step with a share of its own.

    y_t = a_t y_{t-1} + (1 - a_t) x_t

H-Net (arXiv 2507.07955, section 2.2) smooths chunks so, with `1 - a_t` the chance that a chunk
begins at t. Where a is zero the past is forgotten, exactly: so a document begins.

Legend: B batch, T time, D width, N blocks, C steps of a block.
"""

import torch
from torch import Tensor

from .twin import runs_step_by_step

BLOCK = 32
"""Steps that one matrix product handles."""


def smooth(x_BTD: Tensor, keep_BT: Tensor, before_BD: Tensor | None = None) -> Tensor:
    """Smooth; at least in float32.

    Args:
        x_BTD: what comes.
        keep_BT: share a of what was, from 0 to 1.
        before_BD: what was before the first step; None is zero.

    Returns:
        `y_BTD`, in the type that it was computed in.
    """
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    x_BTD, keep_BT = x_BTD.to(wide), keep_BT.to(wide)
    before_BD = torch.zeros_like(x_BTD[:, 0]) if before_BD is None else before_BD.to(wide)
    with torch.autocast(x_BTD.device.type, enabled=False):
        if runs_step_by_step() or x_BTD.shape[1] == 1:
            return smooth_reference(x_BTD, keep_BT, before_BD)
        return _in_blocks(x_BTD, keep_BT, before_BD)


def smooth_reference(x_BTD: Tensor, keep_BT: Tensor, before_BD: Tensor) -> Tensor:
    """Smooth step by step: the twin."""
    y_BD, found = before_BD, []
    for x_BD, keep_B in zip(x_BTD.unbind(1), keep_BT.unbind(1), strict=True):
        y_BD = keep_B[:, None] * y_BD + (1 - keep_B[:, None]) * x_BD
        found.append(y_BD)
    return torch.stack(found, dim=1)


def _in_blocks(x_BTD: Tensor, keep_BT: Tensor, before_BD: Tensor) -> Tensor:
    """Smooth within blocks by one product each, then carry from block to block."""
    length, size = x_BTD.shape[1], min(BLOCK, x_BTD.shape[1])
    missing = -length % size
    x_BTD = torch.nn.functional.pad(x_BTD, (0, 0, 0, missing))
    keep_BT = torch.nn.functional.pad(keep_BT, (0, missing), value=1.0)
    x_BNCD, keep_BNC = x_BTD.unflatten(1, (-1, size)), keep_BT.unflatten(1, (-1, size))
    kept_BNCC, carried_BNC = _shares(keep_BNC)
    y_BNCD = (kept_BNCC * (1 - keep_BNC)[..., None, :]) @ x_BNCD
    found = []
    for y_BCD, carried_BC in zip(y_BNCD.unbind(1), carried_BNC.unbind(1), strict=True):
        found.append(y_BCD + carried_BC[..., None] * before_BD[:, None])
        before_BD = found[-1][:, -1]
    return torch.cat(found, dim=1)[:, :length]


def _shares(keep_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """What is left at each step of every step before it, and of what was before the block.

    Products are taken through logarithms; zeros are counted apart, so that none has a logarithm.
    """
    zero_BNC = keep_BNC == 0
    log_BNC = torch.where(zero_BNC, 1.0, keep_BNC).log().cumsum(dim=-1)
    zeros_BNC = zero_BNC.cumsum(dim=-1)
    same_BNCC = (zeros_BNC[..., :, None] == zeros_BNC[..., None, :]).tril()
    apart_BNCC = log_BNC[..., :, None] - log_BNC[..., None, :]
    kept_BNCC = apart_BNCC.masked_fill(~same_BNCC, -torch.inf).exp()
    return kept_BNCC, log_BNC.masked_fill(zeros_BNC > 0, -torch.inf).exp()
