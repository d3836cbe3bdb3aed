"""What every mixer promises.

Legend: B batch, T time, D width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .cost import Cost
from .state import State


@dataclass(frozen=True)
class Site:
    """Where in a backbone a mixer is to stand.

    Attributes:
        dim: model width.
        head_dim: the backbone's usual head width, for mixers that set none of their own.
        layer: index of the layer.
        num_layers: layers of the backbone.
        name: what the layout calls the mixer.
        first: whether no earlier layer has a mixer of that name.
    """

    dim: int
    head_dim: int
    layer: int = 0
    num_layers: int = 1
    name: str = ""
    first: bool = True

    def heads(self, num_heads: int | None, head_dim: int | None) -> tuple[int, int]:
        """Return heads and head dim; what is null follows from the other and the width.

        Raises:
            ValueError: where they don't divide the width.
        """
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"head_dim={head_dim} must be at least 1, or null to derive it")
        if num_heads is None:
            head_dim = head_dim or self.head_dim
            if head_dim < 1 or self.dim % head_dim:
                raise ValueError(
                    f"head_dim={head_dim} doesn't divide dim={self.dim}: choose a divisor, or set "
                    "num_heads"
                )
            return self.dim // head_dim, head_dim
        if num_heads < 1 or (head_dim is None and self.dim % num_heads):
            raise ValueError(
                f"num_heads={num_heads} doesn't divide dim={self.dim}: choose a divisor, or set "
                "head_dim"
            )
        return num_heads, head_dim or self.dim // num_heads


@dataclass
class MixerConfig(ABC):
    """Settings of one mixer; a subclass adds its own and names itself.

    Attributes:
        kind: the mixer's name in the list of mixers; it tags the config in YAML and checkpoints.
        argument: the setting that a layout's `name:value` sets, such as the window of `swa:256`;
            None where there is none.
    """

    argument: ClassVar[str | None] = None
    kind: str = ""

    @abstractmethod
    def build(self, site: Site) -> "Mixer":
        """Make the module; raises ValueError on settings that are impossible at this site."""


class Mixer(nn.Module, ABC):
    """A module that moves information along time, and nothing else.

    Attributes:
        shares: whether layers of this mixer hand tensors on to later layers of the same pass; then
            `forward` takes one more argument, the dictionary that they are handed on in (keyed by
            `Site.name`; None where the mixer stands alone).
        shown_width: channels by which a position that doesn't run goes on showing its keys; 0 where
            it can't, above it the mixer is a `models.depth.going.Showing`.
        folded: names of linear layers whose weights the mixer multiplies itself somewhere, so that
            nothing may be hooked onto their calls.
        causal: whether a token sees no later one. One that isn't causal keeps no state: it refuses
            `init_state`, and a state, with a ValueError.
    """

    shares: bool = False
    shown_width: int = 0
    causal: bool = True
    folded: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None = None, state: Any = None
    ) -> tuple[Tensor, Any]:
        """Mix over time.

        Args:
            x_BTD: inputs.
            segments_BT: document ids, contiguous, -1 is padding; None is one document (with a
                state: the document that the state is in).
            state: None to train or score from scratch; else the memory of earlier calls, used for
                prefill, chunked prefill and decoding alike. It may be updated in place.

        Returns:
            `y_BTD`, and the new state (None if none was given).
        """

    @abstractmethod
    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> State:
        """Return empty memory for documents of up to `max_len` tokens; recurrent in float32 up."""

    @abstractmethod
    def cost(self, context: int) -> Cost:
        """Cost of one token that sees `context` tokens, itself included."""

    def prefill_cost(self, length: int) -> Cost:
        """Cost of reading `length` tokens at once: FLOPs add up, state is the last token's."""
        flops = sum(self.cost(context).flops for context in range(1, length + 1))
        last = self.cost(length)
        return Cost(flops, last.weight_bytes, last.state_bytes, last.serial_steps)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise the weights; calling it again draws anew, nothing accumulates."""

    def carry(self, key: str) -> bool:
        """Read, from now on, also the memory that the last call of this pass under `key` left.

        For a loop that is to see at each position what the loop before it remembered there. Returns
        whether the mixer can; then it `shares`.
        """
        return False

    @property
    def carried_flops(self) -> int:
        """FLOPs of one token that reads what the last call left, beside its own."""
        return 0
