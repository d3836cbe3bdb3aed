"""Optional fused kernels: looked up once, checked against the torch path, explained.

Nothing here is needed to import, train or test. A kernel that is missing, or whose small forward
and backward differ from the torch path, is left aside with a reason that `describe` tells.

Legend: B batch, T time, H heads, G key/value heads, K head dim, N documents.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 2e-2
"""Largest relative error of a bf16 kernel against float32 torch, forward and backward."""

Attend = Callable[..., Tensor]
_reasons: dict[str, str] = {}


def describe() -> dict[str, str]:
    """Return, for each kernel that was asked for, that it runs or why it doesn't."""
    return dict(_reasons)


def flash_varlen(x: Tensor) -> Attend | None:
    """Return flash-attn's variable-length attention if it can run on tensors like `x`."""
    if x.device.type != "cuda" or x.dtype not in (torch.float16, torch.bfloat16):
        _reasons.setdefault("flash_attn", "not used: needs a GPU and half precision")
        return None
    return _checked_flash(x.device)


@cache
def _checked_flash(device: torch.device) -> Attend | None:
    try:
        function = import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError) as error:
        _reasons["flash_attn"] = f"not used: {type(error).__name__}: {error}"
        return None
    error = self_check(flash_documents, function, device)
    if error > TOLERANCE:
        _reasons["flash_attn"] = f"not used: differs from torch by {error:.1e} on {device}"
        warnings.warn(f"flash_attn {_reasons['flash_attn']}; torch runs instead", stacklevel=2)
        return None
    _reasons["flash_attn"] = f"runs on {device}: within {error:.1e} of torch"
    return function


def document_bounds(segments_BT: Tensor | None, shape: tuple[int, int]) -> tuple[Tensor, int]:
    """Return where documents start in the flattened batch, and the length of the longest.

    Args:
        segments_BT: document ids, each document contiguous; None is one document a row.
        shape: B and T.

    Returns:
        `[N + 1]` int32, from 0 to B * T, and the length.
    """
    batch, length = shape
    if segments_BT is None:
        return torch.arange(0, batch * length + 1, length, dtype=torch.int32), length
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts_N = starts_BT.flatten().nonzero()[:, 0].to(torch.int32)
    bounds = torch.cat([starts_N, starts_N.new_tensor([batch * length])])
    return bounds, int(bounds.diff().max())


def flash_documents(
    function: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments_BT: Tensor | None,
    window: int | None,
) -> Tensor:
    """Run flash-attn over packed documents: `q [B, T, H, K]`, `k` and `v [B, T, G, K]`."""
    bounds, longest = document_bounds(segments_BT, (q.shape[0], q.shape[1]))
    bounds = bounds.to(q.device)
    out = function(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        bounds,
        bounds,
        longest,
        longest,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return out.unflatten(0, q.shape[:2])


def self_check(run: Callable[..., Tensor], function: Attend, device: torch.device) -> float:
    """Return the largest relative error of output and gradients against float32 torch.

    Three documents over two rows, grouped heads, no window.
    """
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        return torch.randn(2, 64, heads, 32, device=device, generator=generator)

    q, k, v = draw(4), draw(2), draw(2)
    segments = torch.zeros(2, 64, dtype=torch.long, device=device)
    segments[1, 20:] = 1
    half = _with_gradients(
        lambda *x: run(function, *[y.bfloat16() for y in x], segments, None), q, k, v
    )
    full = _with_gradients(lambda *x: _torch_documents(x[0], x[1], x[2], segments), q, k, v)
    pairs = zip(half, full, strict=True)
    return max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)


def _torch_documents(q: Tensor, k: Tensor, v: Tensor, segments_BT: Tensor) -> Tensor:
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, dim=2) for x in (k, v))
    same = (segments_BT[:, :, None] == segments_BT[:, None, :]).tril()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same[:, None])
    return out.transpose(1, 2)


def _with_gradients(attend: Callable[..., Tensor], *inputs: Tensor) -> list[Any]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        out = attend(*leaves)
        out.float().square().sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]
