"""Short causal depthwise convolution over packed documents.

    y_t = sum_j w_j x_{t-j},  j = 0 .. W-1,  x_{t-j} = 0 where it belongs to another document

Legend: B batch, T time, D width (channels), W filter width.
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels import find
from .twin import runs_step_by_step


def short_convolution(
    x_BTD: Tensor,
    weight_DW: Tensor,
    *,
    segments_BT: Tensor | None = None,
    tail_BWD: Tensor | None = None,
) -> Tensor:
    """Convolve each channel with its own causal filter, never across documents.

    Args:
        x_BTD: inputs.
        weight_DW: filters; column j weighs the input j steps back.
        segments_BT: document ids; None is one document.
        tail_BWD: the W-1 inputs before the first token, `[B, W-1, D]`, zero where they belong to
            another document; None is zeros.

    Returns:
        `[B, T, D]`.
    """
    if runs_step_by_step():
        return short_convolution_reference(
            x_BTD, weight_DW, segments_BT=segments_BT, tail_BWD=tail_BWD
        )
    kernel = find("short_convolution", x_BTD, weight_DW) if x_BTD.shape[1] > 1 else None
    if kernel is not None:
        return kernel(x_BTD, weight_DW, segments=segments_BT, state=tail_BWD)[0]
    if tail_BWD is None:
        return _Taps.apply(x_BTD, weight_DW, segments_BT)
    padded, before = torch.cat([tail_BWD.to(x_BTD.dtype), x_BTD], dim=1), tail_BWD.shape[1]
    if x_BTD.shape[1] == 1:
        return (padded * weight_DW.flip(1).t()).sum(dim=1, keepdim=True)
    if segments_BT is not None:  # the tail is of the first token's document
        segments_BT = torch.cat([segments_BT[:, :1].expand(-1, before), segments_BT], dim=1)
    return _Taps.apply(padded, weight_DW, segments_BT)[:, before:]


class _Taps(torch.autograd.Function):
    """The sum over taps, accumulated in place in both directions.

    `dx_t = sum_j w_j g_{t+j}`, `dw_j = sum_t g_t x_{t-j}`, over pairs within one document.
    Autograd's own gradient would fill and add a full-size tensor for each tap.
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_DW: Tensor, segments_BT: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BTD, weight_DW, segments_BT)
        taps_WD = weight_DW.t().contiguous()
        out = x_BTD * taps_WD[0]
        for back, tap_D in enumerate(taps_WD[1:], start=1):
            earlier = _within(x_BTD[:, :-back], segments_BT, back)
            out[:, back:].addcmul_(earlier, tap_D)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BTD, weight_DW, segments_BT = ctx.saved_tensors
        (gradient,) = gradients
        taps_WD = weight_DW.t().contiguous()
        dx, dtaps = gradient * taps_WD[0], [(gradient * x_BTD).sum(dim=(0, 1))]
        for back, tap_D in enumerate(taps_WD[1:], start=1):
            later = _within(gradient[:, back:], segments_BT, back)
            dx[:, :-back].addcmul_(later, tap_D)
            dtaps.append((later * x_BTD[:, :-back]).sum(dim=(0, 1)))
        return dx, torch.stack(dtaps, dim=1), None


def _within(x_BTD: Tensor, segments_BT: Tensor | None, back: int) -> Tensor:
    """Zero the pairs (t, t - back) that span two documents."""
    if segments_BT is None:
        return x_BTD
    return x_BTD * (segments_BT[:, back:] == segments_BT[:, :-back])[..., None]


def short_convolution_reference(
    x_BTD: Tensor,
    weight_DW: Tensor,
    *,
    segments_BT: Tensor | None = None,
    tail_BWD: Tensor | None = None,
) -> Tensor:
    """Step-by-step twin of `short_convolution`, one token and one matrix product at a time."""
    width = weight_DW.shape[1]
    padded = torch.cat([_tail(x_BTD, width, tail_BWD), x_BTD], dim=1)
    outputs = []
    for time in range(x_BTD.shape[1]):
        window_BWD = padded[:, time : time + width].flip(1)
        if segments_BT is not None:
            seen = [_same_document(segments_BT, back)[:, time] for back in range(width)]
            window_BWD = window_BWD * torch.stack(seen, dim=1)[..., None]
        outputs.append(
            (window_BWD.permute(0, 2, 1)[..., None, :] @ weight_DW[..., None])[..., 0, 0]
        )
    return torch.stack(outputs, dim=1)


def next_tail(
    x_BTD: Tensor, width: int, segments_BT: Tensor | None, tail_BWD: Tensor | None
) -> Tensor:
    """Return the last W-1 inputs of the last token's document, zero elsewhere: `[B, W-1, D]`."""
    padded = torch.cat([_tail(x_BTD, width, tail_BWD), x_BTD], dim=1)
    last = padded[:, padded.shape[1] - (width - 1) :]
    if segments_BT is None:
        return last
    length = x_BTD.shape[1]
    first_BT = segments_BT[:, :1].expand(-1, width - 1)  # the incoming tail is of this document
    ids = torch.cat([first_BT, segments_BT], dim=1)[:, length:]
    return last * (ids == segments_BT[:, -1:])[..., None]


def _tail(x_BTD: Tensor, width: int, tail_BWD: Tensor | None) -> Tensor:
    if tail_BWD is None:
        return x_BTD.new_zeros(x_BTD.shape[0], width - 1, x_BTD.shape[2])
    return tail_BWD.to(x_BTD.dtype)


def _same_document(segments_BT: Tensor, back: int) -> Tensor:
    """Whether the token `back` steps earlier is of the same document (a tail is of the first's)."""
    if back == 0:
        return torch.ones_like(segments_BT, dtype=torch.bool)
    length = segments_BT.shape[1]
    earlier = torch.cat([segments_BT[:, :1].expand(-1, back), segments_BT], dim=1)[:, :length]
    return earlier == segments_BT
