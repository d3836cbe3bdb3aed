"""The values that RWKV-7 starts from; with others it learns far less.

They follow RWKV's public training code (github.com/BlinkDL/RWKV-LM, RWKV-v7): curves over channels
and layers, found by hand. The model is that of arXiv 2503.14456.

Legend: D width, H heads, K head dim, X = H * K.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..low_rank import LowRank
from ..mixer import Site

EXPONENTS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""How fast each input's share of the token before falls with the channel."""


@dataclass(frozen=True)
class FirstValues:
    """Initial vectors of one layer.

    Attributes:
        shift: by input, the share of the token before, `[D]`.
        decay: bias of the decay, `[X]`.
        rate: bias of the in-context learning rate, `[X]`.
        first_value: bias of the share of the first layer's values, `[X]`.
        unit_key: scale of the key that erases, `[X]`.
    """

    shift: dict[str, Tensor]
    decay: Tensor
    rate: Tensor
    first_value: Tensor
    unit_key: Tensor


def first_values(site: Site, heads: int, head_dim: int) -> FirstValues:
    """Return the curves of a layer; early channels and layers remember longest."""
    depth = site.layer / max(site.num_layers - 1, 1)
    remaining = 1 - site.layer / site.num_layers
    share_D = torch.arange(site.dim) / site.dim
    inner = heads * head_dim
    ramp_X = torch.arange(inner) / max(inner - 1, 1)
    within = (torch.arange(head_dim) / max(head_dim - 1, 1) * 2 - 1).repeat(heads)
    zigzag_X = within * within.abs()  # from -1 to 1 in each head
    slope_X = ramp_X - 0.5
    return FirstValues(
        shift={name: 1 - share_D ** (power * remaining) for name, power in EXPONENTS.items()},
        decay=-5.5 + 6 * ramp_X ** (1 + depth**0.3) + 2.5 * zigzag_X,
        rate=-0.19 + 0.3 * zigzag_X + 0.4 * slope_X,
        first_value=0.73 - 0.4 * slope_X,
        unit_key=0.71 - 0.1 * slope_X,
    )


@torch.no_grad()
def draw_orthogonal(weight: Tensor, gain: float) -> None:
    """Draw a matrix with orthogonal rows or columns of length `gain`, in float32."""
    drawn = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    weight.copy_(nn.init.orthogonal_(drawn, gain))


@torch.no_grad()
def draw_low_rank(gate: LowRank, bias: Tensor | None) -> None:
    """Start at the bias alone: the first matrix is zero, the second orthogonal."""
    gate.down.weight.zero_()
    channels, rank = gate.up.weight.shape
    draw_orthogonal(gate.up.weight, 0.1 * max(1.0, rank / channels) ** 0.5)
    if bias is not None:
        gate.up.bias.copy_(bias)
