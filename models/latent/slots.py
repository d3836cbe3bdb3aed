"""Thoughts that stand before an answer: positions whose inputs are no words.

A document with n thoughts has n places of role THOUGHT in a row, after `<think>`. What stands there
is the scheme's: a vector that is learned, or one made of the hidden state before it. Nothing is
predicted inside; the last thought predicts the first word that follows.

Legend: B batch, T time, D width.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from ..processes import anywhere
from .latent import Latent, LatentConfig, Reading, Thought


@dataclass
class SlotConfig(LatentConfig):
    """Settings of thoughts before an answer.

    Attributes:
        thoughts: thoughts before an answer, where a stage or a budget names no other number.
    """

    thinks: ClassVar[bool] = True
    thoughts: int = 6

    def slots(self, thoughts: int | None = None) -> int:
        """Return the positions that so many thoughts take: one each."""
        return self.thoughts if thoughts is None else thoughts

    def check_thoughts(self) -> None:
        """Raise ValueError where the number can't be."""
        if self.thoughts < 0:
            raise ValueError(f"latent.thoughts={self.thoughts} must be at least 0")


class FixedSlots(Latent):
    """Thoughts whose inputs wait for nothing: one pass over all, as over words."""

    @abstractmethod
    def slot_inputs(self, given: Reading, x_BTD: Tensor) -> Tensor:
        """Return what stands at thoughts' places, `[D]` or `[B, T, D]`."""

    def forward(self, given: Reading) -> Thought:
        """Put the inputs in their places and run once."""
        x_BTD, places_BT = given.embed(given.tokens_BT), given.thoughts_BT
        if places_BT is not None:
            x_BTD = torch.where(places_BT[..., None], self.slot_inputs(given, x_BTD), x_BTD)
            x_BTD = altered(given, x_BTD, numbered(places_BT))
        return given.run(x_BTD, given.segments_BT, given.calls)


def pieces(
    given: Reading, places_BT: Tensor | None, length: int, by_one: bool
) -> Iterator[tuple[slice, bool]]:
    """Cut time where thoughts begin and end, and between thoughts if they are read one by one.

    Processes that train together cut it alike, where any of them thinks.
    """
    if places_BT is None:
        yield slice(0, length), False
        return
    thinks_T = places_BT.any(dim=0)
    thinking_T = (anywhere(thinks_T) if given.learns else thinks_T).tolist()
    start = 0
    for thinking, run in groupby(thinking_T):
        end = start + len(list(run))
        step = 1 if thinking and by_one else end - start
        for first in range(start, end, step):
            yield slice(first, first + step), thinking
        start = end


def numbered(places_BT: Tensor) -> Tensor:
    """The number of each thought in its run, from 1; 0 where there is none."""
    count_BT = places_BT.cumsum(dim=1)
    before_BT = torch.where(places_BT, 0, count_BT).cummax(dim=1).values
    return torch.where(places_BT, count_BT - before_BT, 0)


def altered(given: Reading, x_BTD: Tensor, numbers_BT: Tensor) -> Tensor:
    """Let the caller of a pass change the inputs of thoughts, and of nothing else.

    Every scheme calls it once for each thought, with the input that is read in the end.

    Args:
        given: the pass.
        x_BTD: inputs, thoughts in their places.
        numbers_BT: the number of each thought at hand, as `numbered` gives it.
    """
    if given.alter is None:
        return x_BTD
    rows, times = numbers_BT.nonzero(as_tuple=True)
    changed_MD = given.alter(x_BTD[rows, times], rows, numbers_BT[rows, times] - 1)
    return x_BTD.index_put((rows, times), changed_MD.to(x_BTD.dtype))
