"""Short causal depthwise convolution over packed documents.

    y_t = sum_j w_j x_{t-j},  j = 0 .. W-1,  x_{t-j} = 0 where it belongs to another document

Legend: B batch, T time, D width (channels), W filter width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import find
from .twin import runs_step_by_step


def short_convolution(
    x_BTD: Tensor,
    weight_DW: Tensor,
    *,
    segments_BT: Tensor | None = None,
    tail_BWD: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Convolve each channel with its own causal filter, never across documents.

    Args:
        x_BTD: inputs.
        weight_DW: filters; column j weighs the input j steps back.
        segments_BT: document ids; None is one document.
        tail_BWD: the W-1 inputs before the first token, `[B, W-1, D]`, zero where they belong to
            another document; None is zeros.
        silu: apply `silu` to the result, as most mixers do; torch's path keeps the inputs alone for
            the gradient, and convolves them again.

    Returns:
        `[B, T, D]`, and the next tail: the last W-1 inputs of the last token's document, zero
        elsewhere; None if none was given.
    """
    given = {"segments_BT": segments_BT, "tail_BWD": tail_BWD}
    kernel = find("short_convolution", x_BTD, weight_DW) if x_BTD.shape[1] > 1 else None
    if runs_step_by_step():
        out_BTD, following = short_convolution_reference(x_BTD, weight_DW, **given)
    elif kernel is not None:
        out_BTD = kernel(x_BTD, weight_DW, segments=segments_BT, state=tail_BWD)[0]
        following = _following(x_BTD, weight_DW, **given)
    elif tail_BWD is not None and x_BTD.shape[1] == 1:
        padded = torch.cat([tail_BWD.to(x_BTD.dtype), x_BTD], dim=1)
        out_BTD = (padded * weight_DW.flip(1).t()).sum(dim=1, keepdim=True)
        following = padded[:, 1:]
    else:
        tail_BWD = None if tail_BWD is None else tail_BWD.to(x_BTD.dtype)
        return _Taps.apply(x_BTD, weight_DW, segments_BT, tail_BWD, silu)
    return F.silu(out_BTD) if silu else out_BTD, following


class _Taps(torch.autograd.Function):
    """The sum over taps, accumulated in place in both directions.

    `dx_t = sum_j w_j g_{t+j}`, `dw_j = sum_t g_t x_{t-j}`, over pairs within one document.
    Autograd's own gradient would fill and add a full-size tensor for each tap.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        weight_DW: Tensor,
        segments_BT: Tensor | None,
        tail_BWD: Tensor | None,
        silu: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x_BTD, weight_DW, segments_BT, tail_BWD)
        ctx.silu = silu
        out_BTD = _sum_taps(x_BTD, weight_DW, segments_BT, tail_BWD)
        if silu:
            out_BTD = F.silu(out_BTD, inplace=not torch.compiler.is_compiling())
        return out_BTD, _following(x_BTD, weight_DW, segments_BT, tail_BWD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_DW, segments_BT, tail_BWD = ctx.saved_tensors
        dout_BTD, dnext_BWD = gradients
        if ctx.silu:
            out_BTD = _sum_taps(x_BTD, weight_DW, segments_BT, tail_BWD)
            dout_BTD = torch.ops.aten.silu_backward(dout_BTD, out_BTD)
        taps_WD = weight_DW.t().contiguous()
        dx, dtaps = dout_BTD * taps_WD[0], torch.empty_like(taps_WD)
        dtaps[0] = (dout_BTD * x_BTD).sum(dim=(0, 1))
        for back, tap_D in enumerate(taps_WD[1:], start=1):
            later = _within(dout_BTD[:, back:], segments_BT, back)
            dx[:, :-back].addcmul_(later, tap_D)
            dtaps[back] = (later * x_BTD[:, :-back]).sum(dim=(0, 1))
        if tail_BWD is None:
            return dx, dtaps.t(), None, None, None
        dtail = _tail_backward(tail_BWD, taps_WD, segments_BT, dout_BTD, dtaps)
        _add_following(dx, dtail, dnext_BWD, segments_BT)
        return dx, dtaps.t(), None, dtail, None


def _sum_taps(
    x_BTD: Tensor, weight_DW: Tensor, segments_BT: Tensor | None, tail_BWD: Tensor | None
) -> Tensor:
    taps_WD = weight_DW.t().contiguous()
    out = x_BTD * taps_WD[0]
    for back, tap_D in enumerate(taps_WD[1:], start=1):
        earlier = _within(x_BTD[:, :-back], segments_BT, back)
        out[:, back:].addcmul_(earlier, tap_D)
        if tail_BWD is not None:
            before = _of_first(_reached(tail_BWD, back, out), segments_BT)
            out[:, :back].addcmul_(before, tap_D)
    return out


def _tail_backward(
    tail_BWD: Tensor,
    taps_WD: Tensor,
    segments_BT: Tensor | None,
    dout_BTD: Tensor,
    dtaps_WD: Tensor,
) -> Tensor:
    """Gradient of the tail, for what the first outputs read of it; adds that of the taps."""
    dtail_BWD = torch.zeros_like(tail_BWD)
    for back, tap_D in enumerate(taps_WD[1:], start=1):
        first = _of_first(dout_BTD[:, :back], segments_BT)
        _reached(dtail_BWD, back, dout_BTD).addcmul_(first, tap_D)
        dtaps_WD[back] += (first * _reached(tail_BWD, back, dout_BTD)).sum(dim=(0, 1))
    return dtail_BWD


def _reached(tail_BWD: Tensor, back: int, x_BTD: Tensor) -> Tensor:
    """The part of the tail that lies `back` steps before the first tokens, a view."""
    start = tail_BWD.shape[1] - back
    return tail_BWD[:, start : start + min(back, x_BTD.shape[1])]


def _of_first(x_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Zero what meets a token of another document than the first token's."""
    if segments_BT is None:
        return x_BTD
    return x_BTD * (segments_BT[:, : x_BTD.shape[1]] == segments_BT[:, :1])[..., None]


def _following(
    x_BTD: Tensor, weight_DW: Tensor, segments_BT: Tensor | None, tail_BWD: Tensor | None
) -> Tensor | None:
    if tail_BWD is None:
        return None
    return next_tail(x_BTD, weight_DW.shape[1], segments_BT, tail_BWD)


def _add_following(
    dx_BTD: Tensor, dtail_BWD: Tensor, dnext_BWD: Tensor, segments_BT: Tensor | None
) -> None:
    """Add the gradient of the next tail to those of what it was made of, in place."""
    width, own = dtail_BWD.shape[1], min(dtail_BWD.shape[1], dx_BTD.shape[1])
    dnext_BWD = dnext_BWD * _of_last(segments_BT, width)
    dx_BTD[:, dx_BTD.shape[1] - own :] += dnext_BWD[:, width - own :]
    dtail_BWD[:, own:] += dnext_BWD[:, : width - own]


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
) -> tuple[Tensor, Tensor | None]:
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
    return torch.stack(outputs, dim=1), _following(x_BTD, weight_DW, segments_BT, tail_BWD)


def next_tail(
    x_BTD: Tensor, width: int, segments_BT: Tensor | None, tail_BWD: Tensor | None
) -> Tensor:
    """Return the last W-1 inputs of the last token's document, zero elsewhere: `[B, W-1, D]`."""
    before, length = width - 1, x_BTD.shape[1]
    recent = x_BTD[:, max(0, length - before) :]
    if length < before:
        recent = torch.cat([_tail(x_BTD, width, tail_BWD)[:, length:], recent], dim=1)
    return recent * _of_last(segments_BT, before)


def _of_last(segments_BT: Tensor | None, width: int) -> Tensor | float:
    """One where the last inputs are of the last token's document, else zero: `[B, width, 1]`."""
    if segments_BT is None:
        return 1.0
    missing = max(0, width - segments_BT.shape[1])
    first_BT = segments_BT[:, :1].expand(-1, missing)  # the incoming tail is of this document
    ids = torch.cat([first_BT, segments_BT[:, segments_BT.shape[1] - width + missing :]], dim=1)
    return (ids == segments_BT[:, -1:])[..., None]


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
