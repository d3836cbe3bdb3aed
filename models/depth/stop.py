"""When a token has thought enough: the rules that stop it at evaluation.

    gate:q          the halting probabilities so far add up to q (Ouro, arXiv 2510.25741; ACT's
                    1 - epsilon, arXiv 1603.08983)
    kl:x            KL(p_r | p_{r-1}) of the next token is below x nats (Huginn, arXiv 2502.05171)
    entropy:x       the entropy of p_r is below x nats
    margin:x        the likeliest token leads the second by more than x
    argmax:n        the likeliest token has been the same in n loops running
    fixed_point:x   |h_r - h_{r-1}| is below x |h_r|

A rule looks at one token alone, so that nothing depends on the batch or on the future. Those that
read the next token out pay for a readout after every loop.

Legend: N tokens still running, D width, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HOLES = ("skip", "reuse")


@dataclass
class Look:
    """What a rule sees of the tokens that ran a loop.

    Attributes:
        before_ND: their states before it.
        after_ND: and after.
        logits_NV: what they would say now; None where the rule doesn't ask.
        halted_N: their halting probabilities added up; None without a gate.
    """

    before_ND: Tensor
    after_ND: Tensor
    logits_NV: Tensor | None = None
    halted_N: Tensor | None = None


class Rule(ABC):
    """One way to stop; it may remember what it saw of the tokens still running.

    Attributes:
        reads: whether it asks for logits.
        gated: whether it asks for halting probabilities.
        allowed: what its number may be, in words.
    """

    reads: bool = False
    gated: bool = False
    allowed: str = "above 0"

    def __init__(self, at: float) -> None:
        self.at = at

    @classmethod
    def allows(cls, at: float) -> bool:
        """Whether the number can be."""
        return at > 0

    @abstractmethod
    def stops(self, look: Look) -> Tensor:
        """Return which tokens stop, `[N]`."""

    def drop(self, running_N: Tensor) -> None:
        """Forget the tokens that stopped; most rules remember nothing."""
        return


class GateRule(Rule):
    """Stop where the model's own gate has said so."""

    gated, allowed = True, "above 0 and at most 1"

    @classmethod
    def allows(cls, at: float) -> bool:
        """A probability."""
        return 0 < at <= 1

    def stops(self, look: Look) -> Tensor:
        """Compare the cumulated probability."""
        assert look.halted_N is not None
        return look.halted_N >= self.at


class EntropyRule(Rule):
    """Stop where the next token is certain."""

    reads = True

    def stops(self, look: Look) -> Tensor:
        """Compare the entropy, nats."""
        logs_NV = _logs(look)
        return -(logs_NV.exp() * logs_NV).sum(dim=-1) < self.at


class MarginRule(Rule):
    """Stop where one token leads."""

    reads, allowed = True, "above 0 and below 1"

    @classmethod
    def allows(cls, at: float) -> bool:
        """A difference of probabilities."""
        return 0 < at < 1

    def stops(self, look: Look) -> Tensor:
        """Compare the lead."""
        best_N2 = _logs(look).exp().topk(2, dim=-1).values
        return best_N2[:, 0] - best_N2[:, 1] > self.at


class KLRule(Rule):
    """Stop where a loop changed the prediction little."""

    reads = True
    earlier_NV: Tensor | None = None

    def stops(self, look: Look) -> Tensor:
        """Compare the divergence from the last prediction; none stops after the first loop."""
        logs_NV, earlier = _logs(look), self.earlier_NV
        self.earlier_NV = logs_NV
        if earlier is None:
            return torch.zeros(len(logs_NV), dtype=torch.bool, device=logs_NV.device)
        return (logs_NV.exp() * (logs_NV - earlier)).sum(dim=-1) < self.at

    def drop(self, running_N: Tensor) -> None:
        """Keep the predictions of the others."""
        if self.earlier_NV is not None:
            self.earlier_NV = self.earlier_NV[running_N]


class ArgmaxRule(Rule):
    """Stop where the likeliest token has stayed the same."""

    reads, allowed = True, "a whole number of at least 2"
    earlier_N: Tensor | None = None
    times_N: Tensor | None = None

    @classmethod
    def allows(cls, at: float) -> bool:
        """A count."""
        return at >= 2 and at == int(at)

    def stops(self, look: Look) -> Tensor:
        """Compare how often in a row."""
        assert look.logits_NV is not None
        best_N = look.logits_NV.argmax(dim=-1)
        if self.earlier_N is None or self.times_N is None:
            self.times_N = torch.ones_like(best_N)
        else:
            self.times_N = torch.where(best_N == self.earlier_N, self.times_N + 1, 1)
        self.earlier_N = best_N
        return self.times_N >= self.at

    def drop(self, running_N: Tensor) -> None:
        """Keep the counts of the others."""
        if self.earlier_N is not None and self.times_N is not None:
            self.earlier_N, self.times_N = self.earlier_N[running_N], self.times_N[running_N]


class FixedPointRule(Rule):
    """Stop where the state has settled (FPRM, arXiv 2606.18206, in the Euclidean norm)."""

    def stops(self, look: Look) -> Tensor:
        """Compare the relative change."""
        after_ND = look.after_ND.float()
        change_N = (after_ND - look.before_ND.float()).norm(dim=-1)
        return change_N < self.at * after_ND.norm(dim=-1)


RULES: dict[str, type[Rule]] = {
    "gate": GateRule,
    "kl": KLRule,
    "entropy": EntropyRule,
    "margin": MarginRule,
    "argmax": ArgmaxRule,
    "fixed_point": FixedPointRule,
}


@dataclass(frozen=True)
class Stop:
    """A rule and its number; no rule lets every token run every loop.

    Attributes:
        rule: name of the rule; empty is none.
        at: its number.
        holes: what deeper loops find where a token stopped, skip or reuse; empty is the depth's
            own policy.
    """

    rule: str = ""
    at: float = math.inf
    holes: str = ""

    @classmethod
    def parse(cls, text: str, key: str = "stop") -> "Stop":
        """Read `none`, `rule:number` or `rule:number/holes`.

        Raises:
            ValueError: naming the key and what is allowed.
        """
        if text == "none":
            return cls()
        said, slash, holes = text.partition("/")
        name, _, number = said.partition(":")
        if slash and holes not in HOLES:
            raise ValueError(f"{key}={text}: {holes} is no policy for holes: choose skip or reuse")
        if name not in RULES:
            raise ValueError(
                f"{key}={text} is no rule: choose none, or {', '.join(RULES)} with its number, as "
                "in kl:0.01"
            )
        try:
            at = float(number)
        except ValueError:
            at = math.nan
        if not RULES[name].allows(at):
            raise ValueError(
                f"{key}={text}: the number of {name} must be {RULES[name].allowed}, as in "
                f"{name}:{'2' if name == 'argmax' else '0.5'}"
            )
        return cls(name, at, holes)

    def __bool__(self) -> bool:
        """Whether tokens may stop."""
        return bool(self.rule)

    @property
    def text(self) -> str:
        """The rule as it is written in configs."""
        holes = f"/{self.holes}" if self.holes else ""
        return f"{self.rule}:{self.at:g}{holes}" if self else "none"

    @property
    def kind(self) -> type[Rule]:
        """The rule's class."""
        return RULES[self.rule]

    def begin(self) -> Rule:
        """Return a rule that has seen nothing."""
        return RULES[self.rule](self.at)


def _logs(look: Look) -> Tensor:
    """Log-probabilities of the next token, at least float32."""
    assert look.logits_NV is not None
    wide = torch.promote_types(look.logits_NV.dtype, torch.float32)
    return F.log_softmax(look.logits_NV.to(wide), dim=-1)
