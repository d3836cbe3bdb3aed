"""What a model spends: analytic and additive.

*Model FLOPs* follow the recurrent or causal form of the mathematics, whatever kernel ran. A
multiply-add counts 2; only products of the kind that a matrix unit runs are counted (projections,
scores, reads and writes of states, convolutions), not elementwise work (norms, activations, gates).
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """A bundle of costs that adds up over parts and scales with repetitions.

    Attributes:
        flops: model FLOPs, forward only.
        weight_bytes: bytes of weights read once, float32.
        state_bytes: bytes of memory held between tokens, float32.
        serial_steps: block passes that must wait for one another.
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    state_bytes: float = 0.0
    serial_steps: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Add part by part."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Cost":
        """Scale every part, as when a block runs `times` times with its own state each."""
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))

    __rmul__ = __mul__


def linear_flops(inputs: int, outputs: int) -> int:
    """FLOPs of a matrix-vector product: one token through a linear layer."""
    return 2 * inputs * outputs


def total(costs: list[Cost]) -> Cost:
    """Add up a list of costs."""
    return sum(costs, Cost())
