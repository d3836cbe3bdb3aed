"""Which tokens go on to the next loop, decided while training too (MoR, arXiv 2507.10524).

    expert   after each loop a router scores the tokens still running; of each document the best
             `capacity` go on. That choice sees the document's end, so at evaluation a token goes on
             where its own score is above one half, which a second loss teaches the router.
    token    before the loops a router gives each token its number of loops, evenly over tokens
             (balanced by a bias, arXiv 2408.15664, not by a loss).

A chosen token's change is multiplied by `s / stop_gradient(s)`: one, through which the gradient
reaches its score s. So a router that lets all go on leaves the loop as it is. (MoR multiplies by
the score itself.)

Legend: B batch, T time, D width, R recurrence.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import linear_flops
from ..layers import init_linear
from ..routing import Router


class Route(nn.Module, ABC):
    """One way to choose.

    Args:
        dim: width D.
        capacities: share of each document's tokens that runs each loop after the first.
    """

    def __init__(self, dim: int, capacities: list[float]) -> None:
        super().__init__()
        self.dim, self.capacities = dim, capacities

    def reset_parameters(self) -> None:
        """Draw the weights anew."""

    @abstractmethod
    def begin(self, entry_BTD: Tensor, segments_BT: Tensor | None, learns: bool) -> "RoutePass":
        """Return what chooses in one pass; `learns` in a training step."""

    @property
    @abstractmethod
    def flops(self) -> int:
        """FLOPs of one token, all loops together."""


class RoutePass(ABC):
    """Chooses in one pass.

    Attributes:
        loss_BT: what the router's own loss charges each token; None is none.
    """

    loss_BT: Tensor | None = None

    @abstractmethod
    def goes_on(self, loop: int, hidden_BTD: Tensor, active_BT: Tensor) -> Tensor:
        """Return which of the active tokens run loop number `loop`, from 1."""

    @abstractmethod
    def weight(self) -> Tensor:
        """Return the factor of the chosen tokens' change, `[B, T]`: one, with a gradient."""


class ExpertRoute(Route):
    """Loops choose their tokens."""

    def __init__(self, dim: int, capacities: list[float]) -> None:
        super().__init__(dim, capacities)
        self.score = nn.Linear(dim, len(capacities))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the scores' weights; no loop is favoured."""
        init_linear(self.score)
        self.score.bias.zero_()

    def begin(self, entry_BTD: Tensor, segments_BT: Tensor | None, learns: bool) -> "RoutePass":
        """Begin."""
        return ExpertPass(self, segments_BT, learns)

    def logits(self, hidden_BTD: Tensor, loop: int) -> Tensor:
        """Scores before the sigmoid; loops beyond the trained ones take the last's."""
        own = min(loop, len(self.capacities)) - 1
        hidden_BTD = F.rms_norm(hidden_BTD, (self.dim,), eps=1e-6)
        return F.linear(hidden_BTD, self.score.weight[own : own + 1], self.score.bias[own])[..., 0]

    @property
    def flops(self) -> int:
        """FLOPs of all scores."""
        return linear_flops(self.dim, len(self.capacities))


class ExpertPass(RoutePass):
    """Expert choice in one pass."""

    def __init__(self, route: ExpertRoute, segments_BT: Tensor | None, learns: bool) -> None:
        self.route, self.segments_BT, self.learns = route, segments_BT, learns

    def goes_on(self, loop: int, hidden_BTD: Tensor, active_BT: Tensor) -> Tensor:
        """The best of each document, or those with a score above one half."""
        logits_BT = self.route.logits(hidden_BTD, loop)
        self.score_BT = logits_BT.sigmoid()
        if not self.learns:
            return active_BT & (logits_BT > 0)
        capacity = self.route.capacities[min(loop, len(self.route.capacities)) - 1]
        chosen_BT = best_of_documents(self.score_BT, active_BT, self.segments_BT, capacity)
        taught_BT = F.binary_cross_entropy_with_logits(
            logits_BT, chosen_BT.to(logits_BT.dtype), reduction="none"
        )
        charged_BT = taught_BT * active_BT
        self.loss_BT = charged_BT if self.loss_BT is None else self.loss_BT + charged_BT
        return chosen_BT

    def weight(self) -> Tensor:
        """Of the last choice."""
        return straight_through(self.score_BT)


class TokenRoute(Route):
    """Tokens choose their number of loops."""

    def __init__(self, dim: int, capacities: list[float]) -> None:
        super().__init__(dim, capacities)
        self.router = Router(dim, len(capacities) + 1, top_k=1, balance_rate=1e-3)

    def reset_parameters(self) -> None:
        """Draw the scores' weights."""
        self.router.reset_parameters()

    def begin(self, entry_BTD: Tensor, segments_BT: Tensor | None, learns: bool) -> "RoutePass":
        """Choose for all loops."""
        normed_BTD = F.rms_norm(entry_BTD, (self.dim,), eps=1e-6)
        weights_BTK, chosen_BTK = self.router(normed_BTD, segments_BT)
        return TokenPass(weights_BTK[..., 0], chosen_BTK[..., 0] + 1)

    @property
    def flops(self) -> int:
        """FLOPs of the scores."""
        return linear_flops(self.dim, self.router.choices)


class TokenPass(RoutePass):
    """Token choice in one pass."""

    def __init__(self, score_BT: Tensor, loops_BT: Tensor) -> None:
        self.score_BT, self.loops_BT = score_BT, loops_BT

    def goes_on(self, loop: int, hidden_BTD: Tensor, active_BT: Tensor) -> Tensor:
        """Those that have a loop left."""
        return active_BT & (self.loops_BT > loop)

    def weight(self) -> Tensor:
        """Of the one choice."""
        return straight_through(self.score_BT)


ROUTES: dict[str, type[Route]] = {"expert": ExpertRoute, "token": TokenRoute}


def straight_through(score_BT: Tensor) -> Tensor:
    """One, whose gradient is that of `log score`."""
    return score_BT / score_BT.detach()


def linear_capacities(loops: int) -> list[float]:
    """MoR's: each loop after the first runs `1 / R` fewer of the tokens."""
    return [(loops - loop) / loops for loop in range(1, loops)]


@torch.no_grad()
def best_of_documents(
    score_BT: Tensor, active_BT: Tensor, segments_BT: Tensor | None, capacity: float
) -> Tensor:
    """Return the best of each document: `capacity` of its tokens, rounded up, among the active.

    Padding is never chosen.
    """
    if segments_BT is None:
        segments_BT = torch.zeros_like(active_BT, dtype=torch.long)
    ranked_BT = score_BT.masked_fill(~active_BT, -torch.inf).argsort(dim=1, descending=True)
    by_document_BT = segments_BT.gather(1, ranked_BT).argsort(dim=1, stable=True)
    order_BT = ranked_BT.gather(1, by_document_BT)
    sorted_BT = segments_BT.gather(1, order_BT)
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    limit_BT = (capacity * same_BTT.sum(dim=-1)).ceil()
    first_BT = torch.searchsorted(sorted_BT.contiguous(), sorted_BT.contiguous())
    rank_BT = torch.arange(score_BT.shape[1], device=score_BT.device) - first_BT
    chosen_BT = (rank_BT < limit_BT.gather(1, order_BT)).gather(1, order_BT.argsort(dim=1))
    return chosen_BT & active_BT & (segments_BT >= 0)
