"""Where the blocks of packed documents stand: bookkeeping of block-sparse attention.

A document is cut into blocks of `size` tokens from its own first token, so that no block holds two
documents. A block that is complete has a *summary* in a slot: first the slots of the document that
a state is in (slot = block index), then one for each block that this call completes, in order. How
many slots there are never depends on the contents of documents, and where documents begin moves
only slots, so isolation is exact.

Legend: B batch, T time, S keys, N summary slots, C slots of this call, J tokens of a block.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class made_once(property):
    """A property that is computed once.

    functools' holds a lock before Python 3.12, which torch.compile can't look into; where it looks
    on, nothing is kept.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None or self.fget is None or torch.compiler.is_compiling():
            return super().__get__(instance, owner)
        name = f"_{self.fget.__name__}"
        if name not in instance.__dict__:
            instance.__dict__[name] = super().__get__(instance, owner)
        return instance.__dict__[name]


@dataclass(frozen=True)
class Blocks:
    """The blocks that the tokens of one call see and complete.

    Attributes:
        size: tokens of a block.
        positions_BT: position of each token within its document.
        segments_BT: document ids; None where all tokens are of one document.
        past: keys that stand before this call's own, each at its position; of all rows a bound.
        held: summary slots that stand before this call's own.
        shared: whether all rows hold `past` tokens of one document, which this call continues:
            then all counts are known without asking the device.
        in_place: whether this call's only key stands among the others, at its position.
        stateful: whether a block may be completed that an earlier call began.
    """

    size: int
    positions_BT: Tensor
    segments_BT: Tensor | None
    past: int = 0
    held: int = 0
    shared: bool = False
    in_place: bool = False
    stateful: bool = False

    @property
    def length(self) -> int:
        """T."""
        return self.positions_BT.shape[1]

    @property
    def new(self) -> int:
        """Slots for the blocks that this call completes: their number, or a bound on it."""
        if self.shared:
            return (self.past + self.length) // self.size - self.past // self.size
        if self.stateful:
            return (self.length - 1) // self.size + 1
        return self.length // self.size

    @made_once
    def complete_BT(self) -> Tensor:
        """Whether a token is the last of its block."""
        return (self.positions_BT + 1) % self.size == 0

    @made_once
    def ends_BC(self) -> Tensor:
        """Time of the last token of each block that this call completes; any, where none is."""
        order_BT = self.complete_BT.byte().argsort(dim=1, descending=True, stable=True)
        return order_BT[:, : self.new]

    @made_once
    def members_BCJ(self) -> Tensor:
        """Index of the key of each token of the blocks that this call completes."""
        back_J = torch.arange(self.size - 1, -1, -1, device=self.ends_BC.device)
        end_BC1 = self.positions_BT.gather(1, self.ends_BC)[..., None]
        return self.locate(self.ends_BC[..., None], end_BC1, back_J)

    def locate(self, time: Tensor | int, position: Tensor, back: Tensor) -> Tensor:
        """Index of the key that stands `back` tokens before the one at this time and position.

        Where no such key exists the index is that of some other.
        """
        if self.in_place:
            return (position - back).clamp(min=0)
        earlier, index = position - back, time - back
        return torch.where(index >= 0, self.past + index, earlier.clamp(min=0))

    @made_once
    def own_BT(self) -> Tensor:
        """Slot that the block of each token has, or will have once it is complete."""
        complete_BT = self.complete_BT.long()
        return self.held + complete_BT.cumsum(dim=1) - complete_BT

    @made_once
    def started_B1(self) -> Tensor:
        """Complete blocks of the document that each row had begun before this call."""
        return self.positions_BT[:, :1] // self.size

    @made_once
    def index_BN(self) -> Tensor:
        """Index within its document of the block of each slot."""
        held_N = torch.arange(self.held, device=self.positions_BT.device)
        ends_BC = self.positions_BT.gather(1, self.ends_BC)
        return torch.cat([held_N.expand(len(ends_BC), -1), ends_BC // self.size], dim=1)

    @made_once
    def shown_BTN(self) -> Tensor:
        """Whether each token sees the summary of each slot: complete, and of its document."""
        time_T = torch.arange(self.length, device=self.positions_BT.device)
        slot_N = torch.arange(self.held, device=self.positions_BT.device)
        held_BTN = (slot_N < self.started_B1)[:, None].expand(-1, self.length, -1)
        new_BTC = (self.ends_BC[:, None] <= time_T[:, None]) & self._real_BC[:, None]
        if self.segments_BT is not None:
            segments_BT1 = self.segments_BT[..., None]
            held_BTN = held_BTN & (segments_BT1 == self.segments_BT[:, :1, None])
            of_BC = self.segments_BT.gather(1, self.ends_BC)
            new_BTC = new_BTC & (segments_BT1 == of_BC[:, None])
        return torch.cat([held_BTN, new_BTC], dim=-1)

    @property
    def _real_BC(self) -> Tensor:
        return self.complete_BT.gather(1, self.ends_BC)

    @made_once
    def earlier_BTN(self) -> Tensor:
        """Whether each slot holds a block before the token's own: what may be selected."""
        slot_N = torch.arange(self.held + self.new, device=self.positions_BT.device)
        return self.shown_BTN & (slot_N < self.own_BT[..., None])

    @made_once
    def key_slots_BS(self) -> Tensor:
        """Slot of each key's block, as far as the queries of its document are concerned."""
        block_S = torch.arange(self.past, device=self.positions_BT.device) // self.size
        past_BS = torch.where(block_S < self.started_B1, block_S, self.held)
        return torch.cat([past_BS, self.own_BT], dim=1)

    def kept(self, capacity: int) -> tuple[Tensor, Tensor]:
        """For each block of the document that the call ends in, what this call says of it.

        Returns:
            `[B, capacity]`: whether the call completed the block, and its place among those that
            it completed.
        """
        block_N = torch.arange(capacity, device=self.positions_BT.device)
        back_BN = self.positions_BT[:, -1:] - ((block_N + 1) * self.size - 1)
        time_BN = self.length - 1 - back_BN
        real_BN = (time_BN >= 0) & (time_BN < self.length)
        time_BN = time_BN.clamp(0, self.length - 1)
        if self.segments_BT is not None:
            real_BN &= self.segments_BT.gather(1, time_BN) == self.segments_BT[:, -1:]
        place_BN = (self.own_BT.gather(1, time_BN) - self.held).clamp(max=max(self.new - 1, 0))
        return real_BN, place_BN
