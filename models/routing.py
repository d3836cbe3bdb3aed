"""Token-choice routing: each position picks its top k of several experts or memories.

Scores are sigmoids, normalised over the chosen where there are several. A bias that only *selects*
evens out the load without an auxiliary loss (arXiv 2408.15664): after each optimiser step the bias
of an overloaded choice falls by `balance_rate`, and that of an underloaded one rises.

Legend: B batch, T time, D width, E choices, K chosen.
"""

import torch
from torch import Tensor, nn

from .layers import init_linear
from .recompute import is_again


class Router(nn.Module):
    """Chooses `top_k` of `choices` for each position, from that position alone.

    Args:
        dim: width D.
        choices: E.
        top_k: K, at most E.
        balance_rate: step of the selecting bias; 0 leaves it at zero.

    Raises:
        ValueError: on impossible settings.
    """

    bias_E: Tensor
    load_E: Tensor

    def __init__(self, dim: int, choices: int, top_k: int, balance_rate: float) -> None:
        super().__init__()
        if not 1 <= top_k <= choices:
            raise ValueError(f"top_k={top_k} must lie between 1 and the {choices} to choose from")
        if balance_rate < 0:
            raise ValueError(f"balance_rate={balance_rate} must be at least 0")
        self.choices, self.top_k, self.balance_rate = choices, top_k, balance_rate
        self.score = nn.Linear(dim, choices, bias=False)
        self.register_buffer("bias_E", torch.zeros(choices))
        self.register_buffer("load_E", torch.zeros(choices), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the scores' weights; no choice is favoured, nothing has been counted."""
        init_linear(self.score)
        self.bias_E.zero_()
        self.load_E.zero_()

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weights (they sum to one, or are one score), and their choices `[B, T, K]`.

        While training, the load is counted (padding left out) for `balance`.
        """
        scores_BTE = self.score(x_BTD).sigmoid()
        wide = scores_BTE.detach().to(torch.promote_types(scores_BTE.dtype, self.bias_E.dtype))
        chosen_BTK = (wide + self.bias_E).topk(self.top_k, dim=-1).indices
        weights_BTK = scores_BTE.gather(-1, chosen_BTK)
        counts = self.training and torch.is_grad_enabled() and not is_again()
        if counts and self.balance_rate:
            self._count(chosen_BTK, segments_BT)
        if self.top_k > 1:  # of a single choice only the score itself can tell which was better
            weights_BTK = weights_BTK / (weights_BTK.sum(dim=-1, keepdim=True) + 1e-9)
        return weights_BTK, chosen_BTK

    @torch.no_grad()
    def _count(self, chosen_BTK: Tensor, segments_BT: Tensor | None) -> None:
        once = torch.ones_like(chosen_BTK, dtype=self.load_E.dtype)
        if segments_BT is not None:
            once = once * (segments_BT >= 0)[..., None]
        self.load_E.index_add_(0, chosen_BTK.flatten(), once.flatten())

    @torch.no_grad()
    def balance(self) -> None:
        """Move the bias against the load counted since the last call (arXiv 2408.15664, alg. 1).

        Over several processes the caller adds up `load_E` first.
        """
        self.bias_E.add_((self.load_E.mean() - self.load_E).sign(), alpha=self.balance_rate)
        self.load_E.zero_()


def routers(module: nn.Module) -> list[Router]:
    """Return every router inside a module, for the trainer to balance after a step."""
    return [child for child in module.modules() if isinstance(child, Router)]
