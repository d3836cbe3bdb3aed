"""Parallel heads: several mixers read the same input, and learned weights mix what they say.

    y = sum_i  m_i * mixer_i(x),    m_i a vector of the model's width, one at first

As in Falcon-H1 (arXiv 2507.22448, section 2), where the m_i are fixed numbers, and Hymba (arXiv
2411.13676, equation 3), which also normalises each branch before one shared output projection; here
each mixer keeps its own normalisation and projection.

Legend: B batch, T time, D width.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from .cost import Cost, total
from .mixer import Mixer
from .state import State


@dataclass
class ParallelState(State):
    """The states of mixers side by side, which read the same tokens.

    Attributes:
        parts: a state for each mixer; the counters are the first one's.
    """

    parts: list[Any]

    @classmethod
    def of(cls, parts: list[Any]) -> Self:
        """Put states side by side."""
        return cls(parts[0].document_B, parts[0].position_B, parts)

    def take(self, rows: Tensor) -> Self:
        """Return a copy with these rows, in this order."""
        return type(self).of([part.take(rows) for part in self.parts])

    def put(self, rows: Tensor, other: State) -> None:
        """Overwrite these rows, in place, by the rows of another state of the same capacity."""
        assert isinstance(other, ParallelState)
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.put(rows, theirs)
        self.document_B, self.position_B = self.parts[0].document_B, self.parts[0].position_B

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place."""
        for part in self.parts:
            part.forget(rows)
        self.document_B, self.position_B = self.parts[0].document_B, self.parts[0].position_B

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self.parts)


class Parallel(Mixer):
    """Mixers side by side in one layer, added up with learned weights.

    Args:
        mixers: at least two.
        dim: width D.
    """

    def __init__(self, mixers: Sequence[Mixer], dim: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.mix = nn.ParameterList(torch.empty(dim) for _ in mixers)
        self.shares = any(mixer.shares for mixer in mixers)
        self.causal = all(mixer.causal for mixer in mixers)
        self._reset_mix()

    def reset_parameters(self) -> None:
        """Draw the mixers' weights; each has weight one at first."""
        for mixer in self.parts():
            mixer.reset_parameters()
        self._reset_mix()

    def _reset_mix(self) -> None:
        for weight in self.mix:
            nn.init.ones_(weight)

    def parts(self) -> list[Mixer]:
        """Return the mixers."""
        return [mixer for mixer in self.mixers if isinstance(mixer, Mixer)]

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: ParallelState | None = None,
        shared: MutableMapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ParallelState | None]:
        """Mix over time; see `Mixer.forward`."""
        states = [None] * len(self.mixers) if state is None else state.parts
        y_BTD, new = torch.zeros_like(x_BTD), []
        for mixer, weight_D, given in zip(self.parts(), self.mix, states, strict=True):
            more = (shared,) if mixer.shares else ()
            mixed_BTD, after = mixer(x_BTD, segments_BT, given, *more)
            y_BTD = y_BTD + weight_D.to(mixed_BTD.dtype) * mixed_BTD
            new.append(after)
        return y_BTD, None if state is None else ParallelState.of(new)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> ParallelState:
        """Return empty memory of every mixer."""
        return ParallelState.of(
            [mixer.init_state(batch, max_len, device, dtype) for mixer in self.parts()]
        )

    def cost(self, context: int) -> Cost:
        """Cost of one token: all mixers, side by side."""
        return self._weights() + total([mixer.cost(context) for mixer in self.parts()])

    def prefill_cost(self, length: int) -> Cost:
        """Cost of reading `length` tokens at once."""
        return self._weights() + total([mixer.prefill_cost(length) for mixer in self.parts()])

    def _weights(self) -> Cost:
        return Cost(weight_bytes=4 * sum(weight.numel() for weight in self.mix))
