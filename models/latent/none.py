"""No latent thought: embed the tokens and run the stack once over them.

Legend: B batch, T time.
"""

from dataclasses import dataclass

from torch import Tensor

from .latent import Embed, Latent, LatentConfig, Readout, Run, Thought


@dataclass
class NoLatentConfig(LatentConfig):
    """All thinking is written; there is nothing to set."""

    kind: str = "none"

    def build(self, dim: int) -> "NoLatent":
        """Make the module."""
        return NoLatent()


class NoLatent(Latent):
    """The plain language model."""

    def forward(
        self, tokens_BT: Tensor, roles_BT: Tensor | None, embed: Embed, run: Run, readout: Readout
    ) -> Thought:
        """Embed, run once."""
        return run(embed(tokens_BT))
