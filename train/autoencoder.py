"""A sparse autoencoder: hidden states as sums of few of many directions (arXiv 2406.04093).

    x = scale h                       what it reads, of mean square 1 after its bias
    z = ReLU(TopK(W_enc (x - b_pre) + b_enc))
    h' = (W_dec z + b_pre) / scale    every column of W_dec of norm 1

Legend: N positions, D width, C concepts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder makes of hidden states.

    Attributes:
        x_ND: what it read, scaled.
        again_ND: the same, made again.
        active_NC: activations; all but a few are 0.
        scores_NC: what the active ones were chosen by.
    """

    x_ND: Tensor
    again_ND: Tensor
    active_NC: Tensor
    scores_NC: Tensor


class Autoencoder(nn.Module):
    """TopK autoencoder.

    Args:
        dim: width D of the hidden states.
        num_concepts: directions C.
        active: directions that stand for a hidden state, at most.
    """

    scale: Tensor

    def __init__(self, dim: int, num_concepts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.pre_bias_D = nn.Parameter(torch.zeros(dim))
        self.encoder_CD = nn.Parameter(torch.empty(num_concepts, dim))
        self.bias_C = nn.Parameter(torch.zeros(num_concepts))
        self.decoder_CD = nn.Parameter(torch.empty(num_concepts, dim))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def begin(self, hidden_ND: Tensor, generator: torch.Generator) -> None:
        """Draw the directions, and take mean and scale from these hidden states.

        The encoder begins as the decoder, transposed: fewer concepts then die early.
        """
        mean_D = hidden_ND.mean(dim=0)
        self.scale.copy_(1 / (hidden_ND - mean_D).square().mean().sqrt().clamp(min=1e-12))
        self.pre_bias_D.copy_(self.scale * mean_D)
        drawn_CD = torch.randn(self.decoder_CD.shape, generator=generator)
        self.decoder_CD.copy_(drawn_CD)
        self.normalise()
        self.encoder_CD.copy_(self.decoder_CD)
        self.bias_C.zero_()

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring the decoder's columns back to norm 1."""
        self.decoder_CD.div_(self.decoder_CD.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    def forward(self, hidden_ND: Tensor) -> Reconstruction:
        """Make hidden states again."""
        x_ND = self.scale * hidden_ND
        scores_NC = (x_ND - self.pre_bias_D) @ self.encoder_CD.T + self.bias_C
        active_NC = kept(scores_NC, self.active)
        return Reconstruction(x_ND, self._decode(active_NC), active_NC, scores_NC)

    def encode(self, hidden_ND: Tensor) -> Tensor:
        """Return the activations `[N, C]`."""
        return self(hidden_ND).active_NC

    def decode(self, active_NC: Tensor) -> Tensor:
        """Return the hidden states that activations stand for."""
        return self._decode(active_NC) / self.scale

    def _decode(self, active_NC: Tensor) -> Tensor:
        return active_NC @ self.decoder_CD + self.pre_bias_D

    def attribution(self, active_NC: Tensor, gradient_ND: Tensor) -> Tensor:
        """Return activation times gradient, by the gradient of a loss by the hidden states."""
        return active_NC * (gradient_ND @ self.decoder_CD.T) / self.scale


def kept(scores_NC: Tensor, active: int) -> Tensor:
    """Keep the largest scores of each position, where they are above 0; the others become 0."""
    top = scores_NC.topk(active, dim=-1)
    return torch.zeros_like(scores_NC).scatter(-1, top.indices, top.values.relu())


def autoencoder_loss(
    autoencoder: Autoencoder, made: Reconstruction, dead_C: Tensor, auxiliary: float
) -> Tensor:
    """Return the normalised squared error, and that of dead concepts on what it leaves over.

    The second (section A.2 of the paper) gives concepts that never are among the largest a
    gradient: those of them that fit best model the error together.

    Args:
        autoencoder: what made it.
        made: hidden states, made again.
        dead_C: bool, concepts that haven't been active for long.
        auxiliary: weight of the second term.
    """
    left_ND = made.x_ND - made.again_ND
    spread = (made.x_ND - made.x_ND.mean(dim=0)).square().sum().clamp(min=1e-12)
    loss = left_ND.square().sum() / spread
    dead = int(dead_C.sum())
    if not auxiliary or not dead:
        return loss
    scores_NC = made.scores_NC.masked_fill(~dead_C, -torch.inf)
    most = min(dead, max(1, made.x_ND.shape[1] // 2))
    model_ND = kept(scores_NC, most) @ autoencoder.decoder_CD
    left_ND = left_ND.detach()
    apart = (left_ND - model_ND).square().sum() / left_ND.square().sum().clamp(min=1e-12)
    return loss + auxiliary * apart
