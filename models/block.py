"""A block: norm, mixer, residual; norm, feed-forward network, residual.

Legend: B batch, T time, D width.
"""

from typing import Any

from torch import Tensor, nn

from .cost import Cost
from .layers import RMSNorm, SwiGLU
from .mixer import Mixer


class Block(nn.Module):
    """Pre-norm residual block (arXiv 2002.04745) around any mixer.

    Args:
        mixer: moves information along time.
        dim: width D.
        mlp_hidden: hidden width of the feed-forward network.
    """

    def __init__(self, mixer: Mixer, dim: int, mlp_hidden: int) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(dim)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(dim)
        self.mlp = SwiGLU(dim, mlp_hidden)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.mixer_norm.reset_parameters()
        self.mixer.reset_parameters()
        self.mlp_norm.reset_parameters()
        self.mlp.reset_parameters()

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None = None, state: Any = None
    ) -> tuple[Tensor, Any]:
        """Return the block's output and the mixer's new state (None if none was given)."""
        mixed_BTD, state = self.mixer(self.mixer_norm(x_BTD), segments_BT, state)
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), state

    def cost(self, context: int) -> Cost:
        """Cost of one token that sees `context` tokens: one serial step."""
        return self.mixer.cost(context) + self._rest()

    def prefill_cost(self, length: int) -> Cost:
        """Cost of reading `length` tokens at once."""
        rest = self._rest()
        once = Cost(weight_bytes=rest.weight_bytes, serial_steps=rest.serial_steps)
        return self.mixer.prefill_cost(length) + once + Cost(flops=length * rest.flops)

    def _rest(self) -> Cost:
        norms = 4 * (self.mixer_norm.weight.numel() + self.mlp_norm.weight.numel())
        return self.mlp.cost() + Cost(weight_bytes=norms, serial_steps=1)
