"""flash-attn's variable-length attention over packed documents, and its check against torch.

Legend: B batch, T time, H heads, G key/value heads, K head dim.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernel_documents import document_bounds

Attend = Callable[..., Tensor]


def flash_documents(
    function: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments_BT: Tensor | None,
    window: int | None,
    causal: bool = True,
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
        causal=causal,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return out.unflatten(0, q.shape[:2])


def self_check(run: Callable[..., Tensor], function: Attend, device: torch.device) -> float:
    """Return the largest relative error of output and gradients against float32 torch.

    Three documents over two rows, grouped heads, no window, causal and not; infinite where a number
    is missing.
    """
    return max(_largest_error(run, function, device, causal) for causal in (True, False))


def _largest_error(
    run: Callable[..., Tensor], function: Attend, device: torch.device, causal: bool
) -> float:

    def draw(heads: int, seed: int) -> Tensor:
        # Drawn on the host: the same numbers on every device, and nobody's generator moves.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(2, 64, heads, 32, generator=generator).to(device)

    q, k, v = draw(4, 0), draw(2, 1), draw(2, 2)
    segments = torch.zeros(2, 64, dtype=torch.long, device=device)
    segments[1, 20:] = 1
    half = _with_gradients(
        lambda *x: run(function, *[y.bfloat16() for y in x], segments, None, causal), q, k, v
    )
    full = _with_gradients(lambda *x: _torch_documents(x[0], x[1], x[2], segments, causal), q, k, v)
    pairs = zip(half, full, strict=True)
    errors = torch.stack([(a.float() - b).norm() / b.norm() for a, b in pairs])
    return float(errors.nan_to_num(nan=float("inf")).max())


def _torch_documents(q: Tensor, k: Tensor, v: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, dim=2) for x in (k, v))
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    same = same.tril() if causal else same
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same[:, None])
    return out.transpose(1, 2)


def _with_gradients(attend: Callable[..., Tensor], *inputs: Tensor) -> list[Any]:
    with torch.inference_mode(False), torch.enable_grad():
        with torch.autocast(inputs[0].device.type, enabled=False):
            leaves = [x.detach().clone().requires_grad_() for x in inputs]
            out = attend(*leaves)
        out.float().square().sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]
