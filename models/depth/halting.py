"""A learned gate that says after each loop how likely this token stops here.

    lambda_r = sigmoid(w . h_r / rms(h_r) + b)
    gate   p_r = lambda_r prod_{j<r} (1 - lambda_j), the last loop takes the remainder; the token's
           state is that of the loop where it stops (PonderNet, arXiv 2107.05407; Ouro, 2510.25741)
    act    p_r = lambda_r while their sum stays below 1 - epsilon, then the remainder; its state is
           sum_r p_r h_r (adaptive computation time, arXiv 1603.08983; 1807.03819)

In training every token runs every loop. A regulariser keeps the gate from collapsing: the
divergence of p from a prior, or ACT's cost of pondering.

Legend: B batch, T time, D width, R recurrence.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import linear_flops

EPSILON = 0.01
"""What ACT leaves of a probability of one."""
PRIORS = ("uniform", "geometric")


class Halting(nn.Module, ABC):
    """The gate, and what its probabilities do.

    Args:
        dim: width D.
        bias: where the gate begins, before the sigmoid; its weights begin at zero.
        prior: what p is drawn to; `rate` is the geometric's.
        rate: chance of stopping after each loop, under the geometric prior.
    """

    def __init__(self, dim: int, bias: float, prior: str, rate: float) -> None:
        super().__init__()
        self.dim, self.bias, self.prior, self.rate = dim, bias, prior, rate
        self.gate = nn.Linear(dim, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin with the same probability everywhere."""
        self.gate.weight.zero_()
        self.gate.bias.fill_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return lambda of states `[..., D]`."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        normed = F.rms_norm(hidden.to(wide), (self.dim,), eps=1e-6)
        return self.gate(normed.to(hidden.dtype)).to(wide).sigmoid()[..., 0]

    @abstractmethod
    def begin(self) -> "HaltingPass":
        """Return what follows one pass."""

    @abstractmethod
    def cost(self, halts: list[Tensor]) -> Tensor:
        """What the regulariser charges each token, `[B, T]`, given lambda after each loop."""

    @property
    def flops(self) -> int:
        """FLOPs of one token in one loop."""
        return linear_flops(self.dim, 1)


class HaltingPass(ABC):
    """Adds up the probabilities of one pass.

    Attributes:
        halted_BT: their sum so far.
    """

    halted_BT: Tensor

    @abstractmethod
    def add(self, lambda_BT: Tensor, hidden_BTD: Tensor, last: bool) -> None:
        """Note a loop; positions that didn't run it have `lambda` zero."""

    def finish(self, hidden_BTD: Tensor) -> Tensor:
        """Return the state that follows the loops."""
        return hidden_BTD


class GateHalting(Halting):
    """Each token stops somewhere, with these probabilities."""

    def begin(self) -> HaltingPass:
        """Begin at zero."""
        return GatePass()

    def cost(self, halts: list[Tensor]) -> Tensor:
        """KL(p | prior); for the uniform one it is `log R - H(p)`, Ouro's entropy term."""
        p_RBT = exit_probabilities(halts)
        return divergence(p_RBT, prior_R(self.prior, self.rate, len(halts)).to(p_RBT))


class GatePass(HaltingPass):
    """`1 - prod (1 - lambda)`."""

    running_BT: Tensor | None = None

    def add(self, lambda_BT: Tensor, hidden_BTD: Tensor, last: bool) -> None:
        """Multiply what is left."""
        left = 1 - lambda_BT
        self.running_BT = left if self.running_BT is None else self.running_BT * left
        self.halted_BT = 1 - self.running_BT


class ACTHalting(Halting):
    """Each token's state is a mean over its loops."""

    def begin(self) -> HaltingPass:
        """Begin at zero."""
        return ACTPass()

    def cost(self, halts: list[Tensor]) -> Tensor:
        """`N + R`: loops until it halts, and the remainder, through which the gradient goes."""
        weights_RBT = act_weights(halts)
        steps_BT = (weights_RBT > 0).sum(dim=0)
        last_BT = (steps_BT - 1).clamp(min=0)
        return steps_BT + weights_RBT.gather(0, last_BT[None])[0]


class ACTPass(HaltingPass):
    """Adds up weighted states."""

    mean_BTD: Tensor | None = None

    def add(self, lambda_BT: Tensor, hidden_BTD: Tensor, last: bool) -> None:
        """Weigh by lambda, or by what is left where the token halts."""
        if self.mean_BTD is None:
            self.halted_BT = torch.zeros_like(lambda_BT)
            self.mean_BTD = torch.zeros_like(hidden_BTD)
        ran_BT = lambda_BT > 0
        weight_BT = act_weight(lambda_BT, self.halted_BT, last) * ran_BT
        self.halted_BT = self.halted_BT + weight_BT
        self.mean_BTD = self.mean_BTD + weight_BT[..., None].to(hidden_BTD.dtype) * hidden_BTD

    def finish(self, hidden_BTD: Tensor) -> Tensor:
        """Return the mean."""
        return hidden_BTD if self.mean_BTD is None else self.mean_BTD


HALTINGS: dict[str, type[Halting]] = {"gate": GateHalting, "act": ACTHalting}


def exit_probabilities(halts: list[Tensor]) -> Tensor:
    """Where a token stops, `[R, B, T]`, from lambda after each loop; they sum to one."""
    lambda_RBT = torch.stack(halts)
    left_RBT = torch.cumprod(1 - lambda_RBT[:-1], dim=0)
    before_RBT = torch.cat([torch.ones_like(lambda_RBT[:1]), left_RBT])
    stopped_RBT = torch.cat([lambda_RBT[:-1], torch.ones_like(lambda_RBT[:1])])
    return before_RBT * stopped_RBT


def act_weight(lambda_BT: Tensor, halted_BT: Tensor, last: bool) -> Tensor:
    """ACT's weight of one loop: lambda, the remainder where it halts, zero after."""
    running_BT = halted_BT < 1 - EPSILON
    left_BT = 1 - halted_BT
    halts_BT = (halted_BT + lambda_BT >= 1 - EPSILON) | last
    return torch.where(halts_BT, left_BT, lambda_BT) * running_BT


def act_weights(halts: list[Tensor]) -> Tensor:
    """ACT's weights of all loops, `[R, B, T]`; they sum to one."""
    halted_BT, weights = torch.zeros_like(halts[0]), []
    for loop, lambda_BT in enumerate(halts):
        weights.append(act_weight(lambda_BT, halted_BT, loop == len(halts) - 1))
        halted_BT = halted_BT + weights[-1]
    return torch.stack(weights)


def prior_R(prior: str, rate: float, loops: int) -> Tensor:
    """The prior over loops; the geometric one leaves its tail to the last."""
    if prior == "uniform":
        return torch.full((loops,), 1 / loops)
    return exit_probabilities([torch.tensor(rate)] * loops)


def divergence(p_RBT: Tensor, prior: Tensor) -> Tensor:
    """`KL(p | prior)` of each token, nats."""
    tiny = torch.finfo(p_RBT.dtype).tiny
    logs_RBT = p_RBT.clamp(min=tiny).log() - prior.clamp(min=tiny).log()[:, None, None]
    return (p_RBT * logs_RBT).sum(dim=0)
