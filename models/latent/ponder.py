"""PonderLM: think before every token, in passes over the whole sequence (arXiv 2505.20674).

    x_0 = E(tokens)        x_k = x_{k-1} + s p_k E        p_k = softmax(logits(run(x_{k-1})))

`passes` rounds, then the run that is read out. All positions think at once, so nothing waits for
another token; every pass keeps a memory of its own.

Legend: B batch, T time, D width, V vocabulary, K passes.
"""

from dataclasses import dataclass

from torch import Tensor

from ..cost import Cost
from .costs import CostAt, Sizes
from .latent import Latent, LatentConfig, LatentSite, Reading, Thought, last_of


@dataclass
class PonderConfig(LatentConfig):
    """Settings of pondering passes.

    Attributes:
        passes: passes before the one that is read out.
        scale: multiplies the expected embeddings; null is the square root of the width, as
            published.
    """

    kind: str = "ponder"
    passes: int = 3
    scale: float | None = None

    def build(self, site: LatentSite) -> "Ponder":
        """Make the module; ValueError on impossible settings."""
        if self.passes < 0:
            raise ValueError(f"latent.passes={self.passes} must be at least 0")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"latent.scale={self.scale} must be above 0, or null for sqrt(dim)")
        scale = site.dim**0.5 if self.scale is None else self.scale
        return Ponder(self.passes, scale)


class Ponder(Latent):
    """Runs the stack over soft embeddings, several times."""

    def __init__(self, passes: int, scale: float) -> None:
        super().__init__()
        self.passes, self.scale = passes, scale
        self.copies, self.repeats_passes = passes + 1, passes > 0
        self.repeats_depth = passes > 0

    def forward(self, given: Reading) -> Thought:
        """Ponder, then run what is read out."""
        x_BTD = given.embed(given.tokens_BT)
        parts = [self._run(0, x_BTD, given)]
        for number in range(1, self.copies):
            x_BTD = x_BTD + self.scale * given.expected(parts[-1].hidden_BTD)
            parts.append(self._run(number, x_BTD, given))
        return last_of(parts, given.record)

    def _run(self, number: int, x_BTD: Tensor, given: Reading) -> Thought:
        """Run one pass, on its own part of the memories."""
        if given.calls is None:
            return given.run(x_BTD, given.segments_BT)
        size = len(given.calls) // self.copies
        own = slice(number * size, (number + 1) * size)
        calls = given.calls[own]
        made = given.run(x_BTD, given.segments_BT, calls)
        given.calls[own] = calls
        return made

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """Every pass, and an expected embedding between each two."""
        return self.copies * at(context) + self._between(1, sizes)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """The same, of many tokens at once."""
        return self.copies * at(length) + self._between(length, sizes)

    def _between(self, length: int, sizes: Sizes) -> Cost:
        """Readouts and expected embeddings between passes; the embedding is read as a weight."""
        flops = self.passes * length * (sizes.readout_flops + sizes.blend_flops)
        return Cost(flops=flops, weight_bytes=self.passes * sizes.blend_bytes)

    def passes_per_position(self) -> int:
        """Every pass."""
        return self.copies

    def steps_per_token(self) -> int:
        """Passes that aren't read out."""
        return self.passes
