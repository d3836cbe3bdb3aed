"""No latent thought: embed the tokens and run the stack once over them.

Legend: B batch, T time.
"""

from dataclasses import dataclass

from .latent import Latent, LatentConfig, LatentSite, Reading, Thought


@dataclass
class NoLatentConfig(LatentConfig):
    """All thinking is written; there is nothing to set.

    Under a curriculum of thoughts it is the control without thought: the steps are left out, and
    nothing stands in their place.
    """

    kind: str = "none"

    def build(self, site: LatentSite) -> "NoLatent":
        """Make the module."""
        return NoLatent()


class NoLatent(Latent):
    """The plain language model."""

    def forward(self, given: Reading) -> Thought:
        """Embed, run once."""
        return given.run(given.embed(given.tokens_BT), given.segments_BT, given.calls)
