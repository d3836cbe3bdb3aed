"""Settings of what is minimised, and which backbones can't have it."""

import math
from dataclasses import dataclass

from models.backbone import Backbone
from models.depth.looped import LoopedDepth

OVER = ("final", "uniform", "linear", "expected", "gate", "correct")
READS_LOOPS = OVER[1:]
NEEDS_GATE = ("expected", "gate", "correct")


@dataclass
class ObjectiveConfig:
    """Settings of the objective.

    Attributes:
        chunk_size: positions whose logits are held at once; it changes memory, not the loss.
        z_loss: weight of `logsumexp(logits)^2` (arXiv 2204.02311); 0 is none.
        over: whose predictions count in a loop: the final ones; those after every loop, weighted
            uniform or linear (by the loop's number); expected (by the gate's chance of stopping
            there); or the gate alone is taught: gate (to stop where a loop brings no more, Ouro's
            second stage) or correct (to stop where the prediction is right). Null is expected
            for a backbone with a gate, else final.
        gate_gain: slope k of `w = sigmoid(k (gain - margin))`, by which a loop is to go on (of
            over=gate).
        gate_margin: nats that a loop must gain to be worth it.
        progressive: weight of the loss after a random number of loops that aren't differentiated
            and some that are (arXiv 2202.05826); the final one keeps the rest.
        consistency: weight of the loss of fewer loops, and of their distance from all loops' hidden
            states (LoopFormer, arXiv 2602.11451).
        jacobian: weight of the squared norm of a loop's Jacobian at the last state, by a random
            direction (STARS, arXiv 2605.26733); the loss keeps the rest.
        fill: mask what follows the prompt, and predict each of its tokens at its own place instead
            of one before (see `train.fill`); what sees whole documents can't be trained otherwise.
        thoughts: weight of the word that each thought stands for (`data.thoughts`), predicted at
            the place before it, or at its own (latent=lotus): CoT2's supervised stage (arXiv
            2505.23648), and what keeps thoughts apart in SIM-CoT (2509.20317). It comes on top of
            the loss.
    """

    chunk_size: int = 4096
    z_loss: float = 0.0
    over: str | None = None
    gate_gain: float = 50.0
    gate_margin: float = 0.005
    progressive: float = 0.0
    consistency: float = 0.0
    jacobian: float = 0.0
    fill: bool = False
    thoughts: float = 0.0

    def validate(self, key: str) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.chunk_size < 1:
            raise ValueError(f"{key}.chunk_size={self.chunk_size} must be at least 1 position")
        for name in ("z_loss", "consistency", "gate_gain", "gate_margin", "thoughts"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{key}.{name}={getattr(self, name)} must be a finite number of at least 0"
                )
        for name in ("progressive", "jacobian"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{key}.{name}={getattr(self, name)} must lie between 0 and 1")
        if self.over not in (None, *OVER):
            raise ValueError(
                f"{key}.over={self.over} is not known: choose null, {', '.join(OVER[:-1])} or "
                f"{OVER[-1]}"
            )

    def resolve_over(self, backbone: Backbone) -> str:
        """Return whose predictions count."""
        if self.over is not None:
            return self.over
        depth = backbone.depth
        gated = isinstance(depth, LoopedDepth) and depth.config.halting == "gate"
        return "expected" if gated else "final"

    def check(self, backbone: Backbone, key: str) -> None:
        """Raise ValueError, naming the key, where a backbone can't be trained so."""
        over, kind = self.resolve_over(backbone), backbone.config.depth.kind
        loop = backbone.depth.config if isinstance(backbone.depth, LoopedDepth) else None
        cycles = loop is not None and loop.order == "cycle"
        if over in NEEDS_GATE and not (loop is not None and loop.halting == "gate"):
            raise ValueError(
                f"{key}.over={over} goes by a gate's chances of stopping, which this backbone "
                "doesn't have: choose depth=ouro, or set depth.halting=gate"
            )
        asked: dict[str, str | float] = {"over": over} if over in READS_LOOPS else {}
        asked |= {name: getattr(self, name) for name in ("progressive", "consistency", "jacobian")}
        for name, value in asked.items():
            if value and backbone.config.latent.by_content and name in ("over", "jacobian"):
                raise ValueError(
                    f"{key}.{name}={value} reads every token after every loop, and latent="
                    f"{backbone.config.latent.kind} loops chunks: leave it out (over=final), or "
                    "choose latent=none"
                )
            if value and not cycles:
                raise ValueError(
                    f"{key}.{name}={value} is about loops of whole groups, run in cycles, and "
                    f"depth={kind} has none here: choose depth=looped, or leave it out"
                )
            if value and loop is not None and loop.route != "none" and name != "progressive":
                raise ValueError(
                    f"{key}.{name}={value} follows every token through every loop, but depth.route="
                    f"{loop.route} leaves tokens behind: leave it out"
                )
            if value and loop is not None and loop.injection == "lanes" and name == "jacobian":
                raise ValueError(
                    f"{key}.jacobian={value} needs one state between loops, but depth.injection="
                    "lanes has several: choose another injection, or leave it out"
                )
