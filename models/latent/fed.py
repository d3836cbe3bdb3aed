"""Thoughts made of the hidden state before them: one after the other, or in Jacobi rounds.

Legend: B batch, T time, D width, N thoughts.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..cost import Cost
from ..ops.twin import runs_step_by_step
from ..processes import most_in_any_process
from ..state import State, empty_counters
from .costs import CostAt, Sizes
from .latent import Latent, Reading, Thought, joined_in_time, last_of
from .slots import altered, numbered, pieces
from .unrolled import unrolled


@dataclass
class LastHidden(State):
    """The hidden state of the last position that each row has read."""

    hidden_BD: Tensor


class FedSlots(Latent):
    """Thoughts made of the hidden state before them.

    Attributes:
        jacobi: rounds in which all thoughts of a document are made anew from the round before
            (PCCoT, arXiv 2506.18582); None is one thought after the other.
        shift: how far before a thought's place the hidden state stands that it is made of: 1, or 0
            for its own of the round before.
    """

    shift: int = 1
    repeats_depth = True

    def __init__(self, dim: int, jacobi: int | None = None) -> None:
        super().__init__()
        self.dim, self.jacobi = dim, jacobi
        self.repeats_passes = jacobi is not None

    @abstractmethod
    def next_input(self, hidden_ND: Tensor, given: Reading) -> Tensor:
        """Return the inputs `[N, D]` of thoughts that follow these hidden states."""

    @abstractmethod
    def first_input(self, x_BTD: Tensor) -> Tensor:
        """Return what stands in a thought's place before it was ever made."""

    def forward(self, given: Reading) -> Thought:
        """Think where there are thoughts; else read."""
        x_BTD, places_BT = given.embed(given.tokens_BT), given.thoughts_BT
        if given.calls is not None:
            return self._read_on(given, x_BTD, places_BT)
        if places_BT is None:
            return given.run(x_BTD, given.segments_BT)
        if self.jacobi is not None:
            return rounds(self, given, x_BTD, places_BT, self.jacobi)
        if given.record or given.alter is not None or given.run.keeps_rows or runs_step_by_step():
            return one_by_one(self, given, x_BTD, places_BT)
        where = {"max_len": x_BTD.shape[1], "device": x_BTD.device, "dtype": x_BTD.dtype}
        begin = partial(self.init_memory, **where)
        return unrolled(self._read_on, begin, given, x_BTD, places_BT)

    def init_memory(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> LastHidden:
        """Return a hidden state of zeros for each row."""
        zeros_BD = torch.zeros(batch, self.dim, device=device, dtype=dtype)
        return LastHidden(*empty_counters(batch, device), zeros_BD)

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """A position's, and the hidden state that is remembered."""
        return at(context) + Cost(state_bytes=4 * sizes.dim)

    def thought_rounds(self) -> int:
        """One, or each Jacobi round and the last reading."""
        return 1 if self.jacobi is None else self.jacobi + 1

    def serial_thoughts(self, thoughts: int) -> int:
        """One after the other; or in rounds, in which all thoughts run side by side."""
        return thoughts if self.jacobi is None else self.thought_rounds() * bool(thoughts)

    def training_passes(self, thoughts: int, keeps_rows: bool) -> int:
        """One; one more for each Jacobi round, or each thought where rows must stay as they are."""
        if not thoughts or (self.jacobi is None and not keeps_rows):
            return 1
        return 1 + (thoughts if self.jacobi is None else self.jacobi)

    def _read_on(self, given: Reading, x_BTD: Tensor, places_BT: Tensor | None) -> Thought:
        """Read with a state, in pieces: words as they come, thoughts one by one or in rounds."""
        parts: list[Thought] = []
        numbers_BT = None if places_BT is None else numbered(places_BT)
        for piece, thinking in pieces(given, places_BT, x_BTD.shape[1], self.jacobi is None):
            part = self._read_piece(given, x_BTD, numbers_BT if thinking else None, piece)
            parts.append(part)
            given.memory.hidden_BD = part.hidden_BTD[:, -1].to(given.memory.hidden_BD.dtype)
        return joined_in_time(parts) if len(parts) > 1 else parts[0]

    def _read_piece(
        self,
        given: Reading,
        x_BTD: Tensor,
        numbers_BT: Tensor | None,
        piece: slice,
    ) -> Thought:
        """Read one piece; `numbers_BT` is None where no thought stands in it."""
        x_BTD = x_BTD[:, piece]
        segments_BT = None if given.segments_BT is None else given.segments_BT[:, piece]
        calls = given.calls
        assert calls is not None
        if numbers_BT is None:
            return given.run(x_BTD, segments_BT, calls)
        numbers_BT = numbers_BT[:, piece]
        here_BT1 = numbers_BT[..., None] > 0
        every = torch.arange(len(x_BTD), device=x_BTD.device)
        before_B1D = given.memory.hidden_BD[:, None].to(x_BTD.dtype)
        if self.jacobi is None:
            inputs_BTD = torch.where(here_BT1, self._made(before_B1D, given), x_BTD)
            return given.run(altered(given, inputs_BTD, numbers_BT), segments_BT, calls)
        inputs_BTD = torch.where(here_BT1, self.first_input(x_BTD), x_BTD)
        for _ in range(self.jacobi):
            lent = [call.take(every) for call in calls]
            hidden_BTD = given.run(inputs_BTD, segments_BT, lent).hidden_BTD
            if self.shift:
                hidden_BTD = torch.cat([before_B1D, hidden_BTD[:, :-1]], dim=1)
            inputs_BTD = torch.where(here_BT1, self._made(hidden_BTD, given), x_BTD)
        return given.run(altered(given, inputs_BTD, numbers_BT), segments_BT, calls)

    def _made(self, hidden_BTD: Tensor, given: Reading) -> Tensor:
        return self.next_input(hidden_BTD.flatten(0, 1), given).view_as(hidden_BTD)


def rounds(
    latent: FedSlots, given: Reading, x_BTD: Tensor, places_BT: Tensor, count: int
) -> Thought:
    """Make all thoughts anew in each round, from the hidden states of the round before.

    After `count` rounds the first `count` thoughts of every document are what they would be one
    after the other (a Jacobi iteration of a causal system is exact from the front).
    """
    inputs_BTD = torch.where(places_BT[..., None], latent.first_input(x_BTD), x_BTD)
    parts = []
    for _ in range(count):
        parts.append(given.run(inputs_BTD, given.segments_BT))
        inputs_BTD = filled(latent, given, x_BTD, places_BT, parts[-1].hidden_BTD)
    inputs_BTD = altered(given, inputs_BTD, numbered(places_BT))
    parts.append(given.run(inputs_BTD, given.segments_BT))
    return last_of(parts, given.record)


def filled(
    latent: FedSlots, given: Reading, x_BTD: Tensor, places_BT: Tensor, hidden_BTD: Tensor
) -> Tensor:
    """Put the thoughts that follow these hidden states into some places."""
    rows, times = places_BT.nonzero(as_tuple=True)
    made_ND = latent.next_input(hidden_BTD[rows, (times - latent.shift).clamp(min=0)], given)
    return x_BTD.index_put((rows, times), made_ND.to(x_BTD.dtype))


def one_by_one(latent: FedSlots, given: Reading, x_BTD: Tensor, places_BT: Tensor) -> Thought:
    """Fill one thought of every document at a time, each from a pass over everything.

    The plain twin of `unrolled`.
    """
    numbers_BT = numbered(places_BT)
    inputs_BTD = torch.where(places_BT[..., None], latent.first_input(x_BTD), x_BTD)
    parts = []
    most = int(numbers_BT.max())
    if given.learns:
        (most,) = most_in_any_process([most], x_BTD.device)
    for number in range(1, most + 1):
        parts.append(given.run(inputs_BTD, given.segments_BT))
        now_BT = numbers_BT == number
        inputs_BTD = filled(latent, given, inputs_BTD, now_BT, parts[-1].hidden_BTD)
        inputs_BTD = altered(given, inputs_BTD, torch.where(now_BT, numbers_BT, 0))
    parts.append(given.run(inputs_BTD, given.segments_BT))
    return last_of(parts)
