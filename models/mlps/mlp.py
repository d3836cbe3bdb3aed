"""What every feed-forward network promises.

Legend: B batch, T time, D width, F hidden width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..cost import Cost

Inner = Callable[[Tensor], Tensor]
"""What a block does to the hidden values `[B, T, inner_width]` before they are activated."""


@dataclass
class MLPConfig(ABC):
    """Settings of one feed-forward network; a subclass adds its own and names itself.

    Attributes:
        kind: the network's name in the list of feed-forward networks.
    """

    kind: str = ""

    @abstractmethod
    def build(self, dim: int, hidden: int) -> "MLP":
        """Make the module for a backbone of width `dim`; `hidden` is the backbone's mlp_hidden.

        Raises:
            ValueError: on impossible settings.
        """


class MLP(nn.Module, ABC):
    """Mixes channels, each position alone.

    Attributes:
        inner_width: hidden values before their activation; 0 where a convolution can't stand there.
        folded: see `Mixer`.
    """

    inner_width: int = 0
    folded: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None = None, inner: Inner | None = None
    ) -> Tensor:
        """Apply to each position alone.

        Args:
            x_BTD: inputs.
            segments_BT: document ids; padding (-1) is left out of any statistics.
            inner: applied to the hidden values before their activation.
        """

    @abstractmethod
    def cost(self) -> Cost:
        """Cost of one token."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise the weights; calling it again draws anew."""
