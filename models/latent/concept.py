"""Continuous concepts mixed into the stream (CoCoMix, arXiv 2502.08524, section 3).

    z_t = W_head norm(h_t)              after layer `layer`; one logit for each of C concepts
    c_t = W TopK(z_t) + b               a continuous concept, in the scale of h_t
    h_1, c_1, h_2, c_2, ...             what the layers above read
    next word from the last hidden state at c_t

A concept is a feature of a teacher's autoencoder (`python -m train.concepts`). In training the
logits are taught which concepts the teacher had at each token:

    weight / M  sum_m CE(z_t, label_tm)     over the tokens that have labels, a mean over rows

Which logits are the largest hangs on rounding where two are almost equal, as with any router: on
another number of processes a run drifts apart sooner than a plain one.

The layers above run two positions a token, and hold states of two: a window there spans half as
many words, and a rotation turns twice as far. Where we differ from the paper's code: the head reads
the stream through an RMSNorm with a learned scale (there: LayerNorm, less a bias), a concept takes
the stream's root mean square as its scale (there: its deviation and its mean), and rotations count
positions in every layer (there: GPT-2's embeddings of them, below the concepts alone).

Legend: B batch, T time, S positions above (2 T), D width, C concepts, K active, M labels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..depth.depth import Between
from ..layers import RMSNorm, init_linear, parameter_bytes
from ..ops.twin import runs_step_by_step
from .costs import CostAt, Sizes
from .latent import Latent, LatentSite, MakeCalls, Reading, Thought
from .taught import TaughtConfig


@dataclass
class ConceptConfig(TaughtConfig):
    """Settings of continuous concepts.

    Attributes:
        layer: layers below the concepts; null is half of them.
        active: concepts K that are mixed into one vector.
    """

    kind: str = "concept"
    layer: int | None = None
    active: int = 16

    def build(self, site: LatentSite) -> "Concept":
        """Make the module; ValueError on impossible settings."""
        layer = self._place(site.num_layers)
        self.check_labels()
        if not 1 <= self.active <= self.num_concepts:
            raise ValueError(
                f"latent.active={self.active} must lie between 1 and latent.num_concepts="
                f"{self.num_concepts}"
            )
        return Concept(site.dim, site.num_layers, layer, self)

    def _place(self, num_layers: int) -> int:
        """Return the layers below; ValueError where none is left below or above."""
        if num_layers < 2:
            raise ValueError(
                f"latent=concept stands between two layers, and backbone.num_layers={num_layers}: "
                "choose at least 2"
            )
        layer = num_layers // 2 if self.layer is None else self.layer
        if not 1 <= layer < num_layers:
            raise ValueError(
                f"latent.layer={layer} must leave a layer below and one above, of backbone."
                f"num_layers={num_layers}: choose 1 to {num_layers - 1}"
            )
        return layer


class Concept(Latent):
    """Predicts concepts between two layers, and lays one vector of them after each token."""

    def __init__(self, dim: int, num_layers: int, layer: int, config: ConceptConfig) -> None:
        super().__init__()
        self.between, self.below, self.above = layer, range(layer), range(layer, num_layers)
        self.active, self.weight = config.active, config.weight
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, config.num_concepts, bias=False)
        self.compress = nn.Linear(config.num_concepts, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as those of blocks are drawn."""
        self.norm.reset_parameters()
        init_linear(self.head)
        init_linear(self.compress)
        nn.init.zeros_(self.compress.bias)

    def forward(self, given: Reading) -> Thought:
        """Run the stack with concepts in it; teach them, where labels are given."""
        losses: dict[str, Tensor] = {}

        def change(x_BTD: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
            logits_BTC = self.head(self.norm(x_BTD))
            if given.labels_BTM is not None:
                losses["concept"] = self.weight * concept_loss(logits_BTC, given.labels_BTM)
            concept_BTD = rms(x_BTD) * self.mix(logits_BTC)
            segments_BS = None if segments_BT is None else segments_BT.repeat_interleave(2, dim=1)
            return interleave(x_BTD, concept_BTD.to(x_BTD.dtype)), segments_BS

        x_BTD = given.embed(given.tokens_BT)
        thought = given.run(x_BTD, given.segments_BT, given.calls, Between(len(self.below), change))
        return self._of_tokens(thought, losses)

    def mix(self, logits_BTC: Tensor) -> Tensor:
        """Compress the K largest logits of each token into one vector, `[B, T, D]`."""
        top = logits_BTC.topk(self.active, dim=-1)
        if runs_step_by_step():
            rows_BTKD = self.compress.weight.T[top.indices]
            return (top.values[..., None, :] @ rows_BTKD)[..., 0, :] + self.compress.bias
        sparse_BTC = torch.zeros_like(logits_BTC).scatter(-1, top.indices, top.values)
        return self.compress(sparse_BTC)

    def _of_tokens(self, thought: Thought, losses: dict[str, Tensor]) -> Thought:
        """Keep the hidden states at concepts, which are those that tokens are read out of."""
        ran, below = thought.trajectory, len(self.below)
        trajectory = replace(
            ran,
            block_calls=self.block_calls(ran.block_calls),
            states=[state[:, 1::2] for state in ran.states],
            layers=[*ran.layers[:below], *(x[:, 1::2] for x in ran.layers[below:])],
        )
        return Thought(thought.hidden_BTD[:, 1::2], trajectory, thought.losses | losses)

    def init_calls(self, make: MakeCalls, max_len: int) -> list[Any]:
        """Hold one position a token below the concepts, and two above."""
        split = len(self.below)
        return make(max_len, slice(split)) + make(2 * max_len, slice(split, None))

    # What it costs

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """One position below, the prediction, two positions above in one call."""
        token = at.some(self.above, 2 * context - 1)
        concept = at.some(self.above, 2 * context)
        return at.some(self.below, context) + self._own(1) + concept + Cost(flops=token.flops)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """The positions below, the predictions, twice as many positions above."""
        return at.some(self.below, length) + self._own(length) + at.some(self.above, 2 * length)

    def _own(self, tokens: int) -> Cost:
        """Logits of all concepts, and the sum of the active ones' vectors."""
        dim = self.head.in_features
        flops = linear_flops(dim, self.head.out_features) + linear_flops(self.active, dim)
        return Cost(flops=tokens * flops, weight_bytes=parameter_bytes(self))

    def steps_per_token(self) -> int:
        """One: the concept."""
        return 1

    def block_calls(self, calls: float) -> float:
        """Each layer for the token, and those above for its concept."""
        return calls + len(self.above)

    def prompt_block_calls(self, calls: float) -> float:
        """The same."""
        return self.block_calls(calls)


def interleave(x_BTD: Tensor, concept_BTD: Tensor) -> Tensor:
    """Lay each token's concept after it, `[B, S, D]`."""
    return torch.stack([x_BTD, concept_BTD], dim=2).flatten(1, 2)


def rms(x_BTD: Tensor) -> Tensor:
    """Root mean square of each position, `[B, T, 1]`."""
    wide = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    return (wide.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt()


def concept_loss(logits_BTC: Tensor, labels_BTM: Tensor) -> Tensor:
    """Mean cross-entropy of the labels: over each token's, each row's tokens that have any, rows.

    A label of -1 is none. A row counts the same in whichever part of a batch it stands.
    """
    wide_BTC = logits_BTC.to(torch.promote_types(logits_BTC.dtype, torch.float32))
    chosen_BTM = wide_BTC.log_softmax(dim=-1).gather(-1, labels_BTM.clamp(min=0))
    known_BTM = labels_BTM >= 0
    found_BT = known_BTM.sum(dim=-1)
    losses_BT = (-chosen_BTM * known_BTM).sum(dim=-1) / found_BT.clamp(min=1)
    tokens_B = (found_BT > 0).sum(dim=-1).clamp(min=1)
    return (losses_BT.sum(dim=-1) / tokens_B).mean()
