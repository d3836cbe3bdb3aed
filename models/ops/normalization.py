"""Normalisation of the last axis in few passes over memory.

    rms_norm   y = w * x / sqrt(mean(x^2) + epsilon)      (arXiv 1910.07467, equation 4)
    unit_norm  y = x / sqrt(sum(x^2) + epsilon)

torch fuses the first on accelerators alone. Small models on CPUs spend a tenth of a training step
here, so the gradients are written out: half the passes that autograd makes of separate operations.

Legend: D width (the last axis), N all other positions.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import working_dtype
from .in_place import times
from .twin import runs_step_by_step


def rms_norm(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Normalise the last axis, scaled by `weight_D`; half precisions are summed in float32.

    Args:
        x: any shape that ends in D.
        weight_D: learned scale.
        epsilon: added to the mean square.

    Returns:
        `x`'s shape and dtype.
    """
    if not x.is_cpu or runs_step_by_step():
        return F.rms_norm(x, weight_D.shape, weight_D.to(x.dtype), epsilon)
    dtype = working_dtype(x.dtype)
    if dtype != x.dtype or dtype != weight_D.dtype:
        return rms_norm(x.to(dtype), weight_D.to(dtype), epsilon).to(x.dtype)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight_D, epsilon)
    return (x * inverse_root(x, 1 / x.shape[-1], epsilon)).mul_(weight_D)


def gated_rms_norm(x: Tensor, gate: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """`rms_norm(x * silu(gate), weight_D, epsilon)`: Mamba-2's, gated before it is normalised.

    Training on a CPU keeps x and the gate alone for the gradient.
    """
    plain = not x.is_cpu or runs_step_by_step() or not torch.is_grad_enabled()
    if plain or not x.dtype == gate.dtype == weight_D.dtype == working_dtype(x.dtype):
        return rms_norm(x * F.silu(gate), weight_D, epsilon)
    return _GatedRMSNorm.apply(x, gate, weight_D, epsilon)


def unit_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Scale the last axis to length one, safely at zero; half precisions are summed in float32."""
    wide = x.to(working_dtype(x.dtype))
    if torch.is_grad_enabled() and not runs_step_by_step():
        return _UnitNorm.apply(wide, epsilon).to(x.dtype)
    return (wide * inverse_root(wide, 1.0, epsilon)).to(x.dtype)


def inverse_root(x: Tensor, factor: float, epsilon: float) -> Tensor:
    """`1 / sqrt(factor * sum(x^2) + epsilon)` over the last axis, kept with size one."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return _scalar(epsilon, x.dtype, x.device).addcmul(length, length, value=factor).rsqrt()


@lru_cache(maxsize=32)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def forget_scalars() -> None:
    """Drop the cached scalars: those made of tensors without contents are of no use to others."""
    _scalar.cache_clear()


class _RMSNorm(torch.autograd.Function):
    """With r the inverse root: `dx = r (w g) - x r^3 / D sum(w g x)`, `dw = sum(g x r)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        root = inverse_root(x, 1 / x.shape[-1], epsilon)
        ctx.save_for_backward(x, root, weight_D)
        return times(x * root, weight_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, root, weight_D = ctx.saved_tensors
        return *_rms_norm_backward(x, root, weight_D, *gradients), None


def _rms_norm_backward(
    x: Tensor, root: Tensor, weight_D: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    product_ND = (gradient * x).flatten(0, -2)
    along = (product_ND @ weight_D).view_as(root) * root.pow(3) / -x.shape[-1]
    dx = (gradient * weight_D).mul_(root).addcmul_(x, along)
    return dx, root.flatten() @ product_ND


class _GatedRMSNorm(torch.autograd.Function):
    """`_RMSNorm` of `h = x silu(gate)`, which is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        gated = times(F.silu(gate), x)
        root = inverse_root(gated, 1 / x.shape[-1], epsilon)
        ctx.save_for_backward(x, gate, root, weight_D)
        return times(times(gated, root), weight_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, root, weight_D = ctx.saved_tensors
        opened = F.silu(gate)
        dgated, dweight_D = _rms_norm_backward(opened * x, root, weight_D, *gradients)
        dx = opened.mul_(dgated)
        return dx, torch.ops.aten.silu_backward(dgated.mul_(x), gate), dweight_D, None


class _UnitNorm(torch.autograd.Function):
    """With y the result and r the inverse root: `dx = r (g - y sum(g y))`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        root = inverse_root(x, 1.0, epsilon)
        out = x * root
        ctx.save_for_backward(out, root)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        out, root = ctx.saved_tensors
        (gradient,) = gradients
        along = (gradient * out).sum(dim=-1, keepdim=True)
        return torch.addcmul(gradient, out, along, value=-1).mul_(root), None
