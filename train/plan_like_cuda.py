"""Let tensors without contents take the way that a GPU takes: its attention, its autocast.

A build of torch for CPUs can't differentiate tensors that claim to be on a GPU. So they stay on the
CPU, and what differs there is put right, function by function: `is_cpu` says no, attention is the
fused operator that torch's own dispatch takes on CUDA, and autocast lifts to float32 what CUDA's
list lifts (https://docs.pytorch.org/docs/stable/amp.html).

Legend: B batch, T query time, S key time, H heads, K key dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .plan_tracker import around_modules

_ATTENTION = F.scaled_dot_product_attention
_IS_CPU = torch.Tensor.is_cpu.__get__  # pyright: ignore[reportAttributeAccessIssue]
_NAMES = ("exp", "log", "log1p", "log2", "reciprocal", "rsqrt", "pow", "softmax", "log_softmax")
_NAMES = (*_NAMES, "sum", "prod", "cumsum", "cumprod", "norm", "logsumexp", "expm1")
_LIFTED = {
    getattr(place, name)
    for place in (torch, torch.Tensor, F)
    for name in (*_NAMES, "softplus")
    if hasattr(place, name)
}


class LikeCuda(TorchFunctionMode):
    """Runs what follows as a GPU would.

    Args:
        flash_attn: the flash-attn package is installed there: documents then need no mask.
    """

    def __init__(self, flash_attn: bool) -> None:
        super().__init__()
        self._flash_attn = flash_attn
        self._entered_in: list[nn.Module] = []

    @contextmanager
    def in_recomputation(self) -> Iterator[None]:
        """Hold also for modules that are run again in the backward pass, which knows no modes."""

        def enter(module: nn.Module, inputs: Any) -> None:
            if torch._C._current_graph_task_id() != -1 and not self._entered_in:
                self._entered_in.append(module)
                self.__enter__()

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if self._entered_in and self._entered_in[-1] is module:
                self._entered_in.pop()
                self.__exit__(None, None, None)

        with around_modules(enter, leave):
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or what stands for it on a GPU."""
        kwargs = kwargs or {}
        if func == _IS_CPU:
            return False
        if func is _ATTENTION:
            return self._attend(*args, **kwargs)
        if func in _LIFTED and torch.is_autocast_enabled("cpu"):
            args = tuple(_lifted(x) for x in args)
        return func(*args, **kwargs)

    def _attend(
        self,
        q_BHTK: Tensor,
        k_BHSK: Tensor,
        v_BHSV: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        heads = [q_BHTK, k_BHSK, v_BHSV]
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            heads = [x.to(dtype) for x in heads]
        half = heads[0].dtype.itemsize == 2
        aten = torch.ops.aten
        if half and (attn_mask is None or self._flash_attn) and q_BHTK.shape[-1] <= 256:
            found = aten._scaled_dot_product_flash_attention(
                *heads, 0.0, is_causal or attn_mask is not None, scale=scale
            )
            return found[0]
        bias = None
        if attn_mask is not None:
            # The fused operator takes no booleans: torch makes numbers of them, and keeps those.
            bias = attn_mask.to(heads[0].dtype) if attn_mask.dtype == torch.bool else attn_mask
            bias = bias.expand(*q_BHTK.shape[:3], k_BHSK.shape[2])
        found = aten._scaled_dot_product_efficient_attention(
            *heads, bias, torch.is_grad_enabled(), 0.0, is_causal, scale=scale
        )
        return found[0]


def _lifted(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
