"""Optimisers by role: Muon for the matrices of hidden layers, AdamW for everything else.

Lightning's automatic optimisation takes one optimiser, so the two stand behind one.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .muon import ShardedMuon

KINDS = ("muon", "adamw")


@dataclass
class OptimConfig:
    """Settings of the optimiser.

    Attributes:
        kind: muon (Muon for hidden matrices, AdamW for the rest) or adamw (AdamW for all).
        lr: peak learning rate of the hidden matrices (with adamw: of everything).
        weight_decay: decoupled decay of the hidden matrices.
        momentum: Muon's momentum.
        adam_lr: peak learning rate of the rest, beside Muon; adamw has no use for it.
        betas: AdamW's two decay rates.
    """

    kind: str = "muon"
    lr: float = 0.02
    weight_decay: float = 0.01
    momentum: float = 0.95
    adam_lr: float = 3e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.kind not in KINDS:
            raise ValueError(f"optim.kind={self.kind} is not known: choose {' or '.join(KINDS)}")
        for name in ("lr", "adam_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"optim.{name}={getattr(self, name)} must be a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optim.weight_decay={self.weight_decay} must be at least 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum} must lie in [0, 1)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={self.betas} must be two numbers in [0, 1)")


def hidden_matrices(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of the linear layers inside blocks; not embeddings, heads, filters."""
    linears = {id(child.weight) for child in module.modules() if isinstance(child, nn.Linear)}
    return [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if id(parameter) in linears and ".blocks." in f".{name}"
    ]


class RoleOptimizer(torch.optim.Optimizer):
    """Muon and AdamW as one optimiser with one state dict.

    Both parts work on this object's own parameter groups and state, so schedulers, clipping,
    checkpoints and loading see an ordinary optimiser.
    """

    def __init__(self, module: nn.Module, config: OptimConfig) -> None:
        matrices = [parameter for _, parameter in hidden_matrices(module)]
        chosen = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
        self._parts = _parts(matrices, rest, config)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let each part work on its slice of this optimiser's groups, and on its state."""
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            start = end

    def step(self, closure: Any = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step both parts; a closure is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def forget(self) -> None:
        """Drop all averages, as before the first step."""
        self.state.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load groups and state, and hand them to the parts."""
        super().load_state_dict(state_dict)
        self._share()


def _parts(
    matrices: list[nn.Parameter], rest: list[nn.Parameter], config: OptimConfig
) -> list[torch.optim.Optimizer]:
    first, second = config.betas
    if config.kind == "adamw":
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        plain = {"params": rest, "weight_decay": 0.0}
        return [torch.optim.AdamW([decayed, plain], lr=config.lr, betas=(first, second))]
    muon = ShardedMuon(
        matrices,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn="original",
    )
    adam = torch.optim.AdamW(rest, lr=config.adam_lr, betas=(first, second), weight_decay=0.0)
    return [muon, adam]
