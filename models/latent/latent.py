"""What every latent scheme promises.

Legend: B batch, T time, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..depth.depth import Trajectory


@dataclass
class LatentConfig(ABC):
    """Settings of one latent scheme; a subclass adds its own and names itself.

    Attributes:
        kind: the scheme's name in the list of latents.
    """

    kind: str = ""

    @abstractmethod
    def build(self, dim: int) -> "Latent":
        """Make the module for a backbone of width `dim`."""


@dataclass
class Thought:
    """What a latent scheme hands back.

    Attributes:
        hidden_BTD: final hidden states, normalised, ready to be read out.
        state: the backbone's memory (None if none was given).
        trajectory: what really ran.
        losses: auxiliary losses by name.
    """

    hidden_BTD: Tensor
    state: Any
    trajectory: Trajectory
    losses: dict[str, Tensor] = field(default_factory=dict)


Embed = Callable[[Tensor], Tensor]
"""`tokens_BT -> x_BTD`."""

Run = Callable[[Tensor], Thought]
"""`x_BTD -> Thought`: the depth over its stack, then the final norm."""

Readout = Callable[[Tensor], Tensor]
"""`hidden_BTD -> logits_BTV`."""


class Latent(nn.Module, ABC):
    """Holds the reins of a forward pass: decides what is embedded, and how often the stack runs."""

    def reset_parameters(self) -> None:
        """Draw all weights anew; a scheme with weights of its own overrides this."""

    @abstractmethod
    def forward(
        self, tokens_BT: Tensor, roles_BT: Tensor | None, embed: Embed, run: Run, readout: Readout
    ) -> Thought:
        """Turn tokens into hidden states."""
