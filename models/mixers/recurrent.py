"""State keeping shared by all mixers whose memory is one matrix per head.

Legend: B batch, T time, D width, H heads, K key dim, V value dim, W filter width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..convolution import ShortConvolution
from ..segments import document_positions
from ..state import State, advance, continues, empty_counters, keep

Mix = Callable[
    [Tensor, Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, Tensor, Tensor | None]
]
"""`(x, segments, memory, tail) -> (y, memory, tail)`."""


@dataclass
class RecurrentState(State):
    """A matrix per head, and the inputs that the short convolution still needs.

    Attributes:
        memory_BHKV: the recurrent state, at least float32.
        tail_BWD: the last W-1 inputs of the convolution.
    """

    memory_BHKV: Tensor
    tail_BWD: Tensor

    @classmethod
    def empty(
        cls,
        batch: int,
        shape: tuple[int, int, int],
        conv: ShortConvolution | None,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Self:
        """Return zero memory of `shape` (heads, key dim, value dim), kept in float32 or better.

        `conv` is the mixer's short convolution, None where it has none.
        """
        tail = conv.init_tail(batch, device, dtype) if conv else torch.zeros(batch, 0, 0)
        wide = torch.promote_types(dtype, torch.float32)
        return cls(
            *empty_counters(batch, device),
            memory_BHKV=torch.zeros(batch, *shape, device=device, dtype=wide),
            tail_BWD=tail.to(device),
        )


def recurrent_call(
    mix: Mix, x_BTD: Tensor, segments_BT: Tensor | None, state: RecurrentState | None
) -> tuple[Tensor, RecurrentState | None]:
    """Run `mix` from scratch or from a state, clearing rows whose document ended."""
    if state is None:
        return mix(x_BTD, segments_BT, None, None)[0], None
    kept_B = continues(state, segments_BT)
    memory, tail = keep(state.memory_BHKV, kept_B), keep(state.tail_BWD, kept_B)
    y_BTD, memory, tail = mix(x_BTD, segments_BT, memory, tail)
    assert tail is not None
    counters = advanced(x_BTD, segments_BT, state)
    return y_BTD, RecurrentState(*counters, memory, tail)


def positions_read(x_BTD: Tensor, segments_BT: Tensor | None, state: State | None) -> Tensor:
    """Position of each token within its document, going on from the state, `[B or 1, T]`."""
    start_B = None if state is None else keep(state.position_B, continues(state, segments_BT))
    return document_positions(segments_BT, x_BTD.shape[1], start_B, x_BTD.device)


def advanced(x_BTD: Tensor, segments_BT: Tensor | None, state: State) -> tuple[Tensor, Tensor]:
    """Return the counters `document_B, position_B` of a state that has read these tokens."""
    positions_BT = positions_read(x_BTD, segments_BT, state)
    return advance(state, segments_BT, x_BTD.shape[1], positions_BT)
