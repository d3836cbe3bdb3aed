"""What tells a looped group which loop it is in: weights tied but for a little.

    none    x
    scale   x (1 + s_r)                       one vector a loop (mini-recurrences)
    adaln   x (1 + s(r)) + b(r)               s, b a projection of the loop's phase (LoopFormer)
    lora    every linear layer: W + B_r A_r   (relaxed recursive transformers, arXiv 2410.20672)

Beyond the loops that have weights of their own, the last loop's stand. All begin as the identity.

Legend: B batch, T time, D width, R loops, K rank.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..block import Block
from ..cost import linear_flops


class Relaxation(nn.Module, ABC):
    """One way to tell.

    Args:
        blocks: the blocks of the looped group.
        dim: width D.
        loops: loops with weights of their own.
        rank: rank K of low-rank changes.
    """

    def __init__(self, blocks: Sequence[Block], dim: int, loops: int, rank: int) -> None:
        super().__init__()
        self.dim, self.loops, self.rank = dim, loops, rank

    def reset_parameters(self) -> None:
        """Draw the weights anew."""

    def choose(self, loop: int) -> None:
        """Be in loop number `loop`, from 0, until the next choice."""

    @abstractmethod
    def enter(self, x_BTD: Tensor, loop: int, loops: int) -> Tensor:
        """Return what loop number `loop` of `loops`, from 0, reads."""

    @property
    def flops(self) -> int:
        """FLOPs of one token in one loop."""
        return 0


class NoRelaxation(Relaxation):
    """Loops can't be told apart."""

    def enter(self, x_BTD: Tensor, loop: int, loops: int) -> Tensor:
        """Return the input."""
        return x_BTD


class ScaleRelaxation(Relaxation):
    """A scale of each channel for each loop."""

    def __init__(self, blocks: Sequence[Block], dim: int, loops: int, rank: int) -> None:
        super().__init__(blocks, dim, loops, rank)
        self.scales = nn.Parameter(torch.empty(loops, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin as the identity."""
        self.scales.zero_()

    def enter(self, x_BTD: Tensor, loop: int, loops: int) -> Tensor:
        """Scale."""
        return x_BTD * (1 + self.scales[min(loop, self.loops - 1)].to(x_BTD.dtype))


class PhaseRelaxation(Relaxation):
    """Scale and shift by a projection of the loop's phase `t = r / R` and step `1 / R`.

    Known at any count, so it says how far the loops are (LoopFormer's condition on t and dt).
    """

    waves = 8

    def __init__(self, blocks: Sequence[Block], dim: int, loops: int, rank: int) -> None:
        super().__init__(blocks, dim, loops, rank)
        self.projection = nn.Linear(4 * self.waves, 2 * dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin as the identity."""
        self.projection.weight.zero_()
        self.projection.bias.zero_()

    def enter(self, x_BTD: Tensor, loop: int, loops: int) -> Tensor:
        """Scale and shift."""
        weight = self.projection.weight
        phases = torch.tensor([loop / loops, 1 / loops], device=weight.device, dtype=weight.dtype)
        turns = 2 * math.pi * 2.0 ** torch.arange(self.waves, device=weight.device) / 4
        angles = (phases[:, None] * turns.to(weight.dtype)).flatten()
        features = torch.cat([angles.sin(), angles.cos()])
        # One vector a pass: no token pays for it, so it is no product that costs count.
        made = (weight * features).sum(dim=-1) + self.projection.bias
        scale, shift = made.to(x_BTD.dtype).chunk(2)
        return x_BTD * (1 + scale) + shift


class LowRankRelaxation(Relaxation):
    """A low-rank change of every linear layer of the blocks, for each loop.

    The layers are the blocks' own; a hook adds what the current loop changes. Left alone are those
    whose weights a mixer or a feed-forward network multiplies itself (`folded`).
    """

    def __init__(self, blocks: Sequence[Block], dim: int, loops: int, rank: int) -> None:
        super().__init__(blocks, dim, loops, rank)
        self.place: Tensor | None = None
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for linear in relaxed_layers(blocks):
            self.down.append(torch.empty(loops, rank, linear.in_features))
            self.up.append(torch.empty(loops, linear.out_features, rank))
            linear.register_forward_hook(_Change(self, len(self.down) - 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw A, set B to zero: no loop changes anything at first."""
        for down in self.down:
            bound = math.sqrt(3 / down.shape[-1])
            down.uniform_(-bound, bound)
        for up in self.up:
            up.zero_()

    def enter(self, x_BTD: Tensor, loop: int, loops: int) -> Tensor:
        """Choose the loop's changes."""
        self.choose(loop)
        return x_BTD

    def choose(self, loop: int) -> None:
        """Take the changes of a loop, or of the last that has any."""
        # A tensor, not a number: a compiled block would be compiled anew for each number.
        own = min(loop, self.loops - 1)
        self.place = torch.full((1,), own, device=self.down[0].device)

    def change(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        """Add the current loop's change to what a layer made of x."""
        assert self.place is not None
        down, up = (x[index].index_select(0, self.place)[0] for x in (self.down, self.up))
        waist = nn.functional.linear(x, down.to(output.dtype))
        return output + nn.functional.linear(waist, up.to(output.dtype))

    @property
    def flops(self) -> int:
        """FLOPs of all changes."""
        pairs = zip(self.down, self.up, strict=True)
        return sum(
            linear_flops(down.shape[-1], self.rank) + linear_flops(self.rank, up.shape[1])
            for down, up in pairs
        )


class _Change:
    """A layer's hook; an object, so that a copied model's hooks are of the copy."""

    def __init__(self, relaxation: LowRankRelaxation, index: int) -> None:
        self.relaxation, self.index = relaxation, index

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.relaxation.change(self.index, inputs[0], output)


def relaxed_layers(blocks: Sequence[Block]) -> list[nn.Linear]:
    """The linear layers that blocks call as such, each once."""
    found = {}
    for block in blocks:
        owners = [("mixer.", block.mixer), ("mlp.", block.mlp)]
        folded = [
            prefix + name for prefix, part in owners if part is not None for name in part.folded
        ]
        for name, module in block.named_modules():
            inside = any(name == own or name.startswith(f"{own}.") for own in folded)
            if isinstance(module, nn.Linear) and not inside:
                found[id(module)] = module
    return list(found.values())


RELAXATIONS: dict[str, type[Relaxation]] = {
    "none": NoRelaxation,
    "scale": ScaleRelaxation,
    "adaln": PhaseRelaxation,
    "lora": LowRankRelaxation,
}
