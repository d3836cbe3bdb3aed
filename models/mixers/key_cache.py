"""The memory of softmax attention: keys and values of the current document, in slots.

A position keeps its slot. The first `sinks` slots hold the first tokens of the document for good;
the others are a ring, so that with a window the oldest token makes room for the newest.

Legend: B batch, T time, S key slots, W filter width, D channels, G key/value heads, K key dim.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..ops.rotary import Positions
from ..ops.sight import OwnKeys, as_mask, earlier_keys, visible_keys
from ..segments import document_positions
from ..state import State, advance, continues, empty_counters, keep


@dataclass
class KeyCache(State):
    """Keys and values of the current document, and what its short convolution still needs.

    Attributes:
        keys_BSGK: cached keys.
        values_BSGK: cached values; width 0 where a mixer makes them from the keys.
        positions_BS: position held by each slot, -1 where empty.
        tail_BWD: inputs that the short convolution still needs; width 0 without one.
        max_len: longest document that fits, tokens.
        sinks: slots that keep the first tokens of a document for good.
        longest: a host-side bound on the tokens that any row has read of its document.
        used: number of slots in use in the fullest row (a host-side bound).
        aligned: whether every row is known to hold the same `longest` tokens, as where a batch of
            equal prompts is continued: that saves masks and scattered writes.
    """

    keys_BSGK: Tensor
    values_BSGK: Tensor
    positions_BS: Tensor
    tail_BWD: Tensor
    max_len: int
    sinks: int = 0
    longest: int = 0
    used: int = 0
    aligned: bool = True

    @classmethod
    def empty(
        cls,
        widths: tuple[int, int, int],
        tail_BWD: Tensor,
        max_len: int,
        *,
        window: int | None = None,
        sinks: int = 0,
        dtype: torch.dtype,
    ) -> Self:
        """Return empty slots: as many as tokens, or as window and sinks hold.

        `widths` are the key/value heads and the widths of a key and of a value; `tail_BWD` gives
        batch and device as well.
        """
        batch, device, (heads, key_dim, value_dim) = len(tail_BWD), tail_BWD.device, widths
        slots = min(max_len, window + sinks if window else max_len)
        return cls(
            *empty_counters(batch, device),
            keys_BSGK=torch.zeros(batch, slots, heads, key_dim, device=device, dtype=dtype),
            values_BSGK=torch.zeros(batch, slots, heads, value_dim, device=device, dtype=dtype),
            positions_BS=torch.full((batch, slots), -1, dtype=torch.long, device=device),
            tail_BWD=tail_BWD,
            max_len=max_len,
            sinks=min(sinks, slots - 1),
        )

    def put(self, rows: Tensor, other: State) -> None:
        """Overwrite these rows, in place, by the rows of another state of the same capacity."""
        assert isinstance(other, KeyCache)
        super().put(rows, other)
        self.used = max(self.used, other.used)
        self.aligned = self.aligned and other.aligned and self.longest == other.longest
        self.longest = max(self.longest, other.longest)

    def forget(self, rows: Tensor) -> None:
        """Clear these rows, in place."""
        super().forget(rows)
        self.positions_BS[rows] = -1
        self.aligned = False

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and convolution inputs held."""
        held = (self.keys_BSGK, self.values_BSGK, self.tail_BWD)
        return sum(x.numel() * x.element_size() for x in held)

    def begin(self, segments_BT: Tensor | None, length: int) -> Tensor:
        """Forget documents that ended; return the positions `[B, T]` of the tokens to come.

        Raises:
            ValueError: where a document outgrows `max_len`.
        """
        kept_B = continues(self, segments_BT)
        if kept_B is not None:
            self.positions_BS.masked_fill_(~kept_B[:, None], -1)
            self.tail_BWD, self.aligned = keep(self.tail_BWD, kept_B), False
        start_B = keep(self.position_B, kept_B)
        positions_BT = document_positions(segments_BT, length, start_B, self.positions_BS.device)
        self._check_room(positions_BT)
        return positions_BT

    def rotary_positions(self, positions_BT: Tensor) -> Positions:
        """Positions of the tokens begun, as a slice where all rows share them."""
        if not self.aligned:
            return positions_BT
        return slice(self.longest - positions_BT.shape[1], self.longest)

    def update(
        self,
        k: Tensor,
        v: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | OwnKeys | None]:
        """Write the tokens begun; return all keys and values, and which of them each query sees.

        A single token stands in its slot among the others; several stand behind the slots that
        were in use before, since a ring may no longer hold what the first of them sees.
        """
        if k.shape[1] == 1:
            self._append(k, v, positions_BT)
            visible = None if self.aligned else self.positions_BS[:, None, : self.used] >= 0
            keys, values = self.keys_BSGK[:, : self.used], self.values_BSGK[:, : self.used]
            keys, values = keys.to(k.dtype), values.to(v.dtype)
        else:
            keys, values = k, v
            visible = own_keys(positions_BT, segments_BT, window, self.sinks)
            if self.used:
                visible = self._with_cached(as_mask(visible), positions_BT, segments_BT, window)
                keys = torch.cat([self.keys_BSGK[:, : self.used].to(k.dtype), k], dim=1)
                values = torch.cat([self.values_BSGK[:, : self.used].to(v.dtype), v], dim=1)
            self._write(k, v, positions_BT, segments_BT)
        self.document_B, self.position_B = advance(self, segments_BT, k.shape[1], positions_BT)
        return keys, values, visible

    def _with_cached(
        self,
        own: Tensor | None,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        window: int | None,
    ) -> Tensor:
        held_BS = self.positions_BS[:, : self.used]
        document_BS = self.document_B[:, None].expand(held_BS.shape)
        cached = visible_keys(
            positions_BT, held_BS, segments_BT, document_BS, window, sinks=self.sinks
        )
        if own is None:
            own = earlier_keys(None, positions_BT.shape[1], None, positions_BT.device)
        return torch.cat([cached, own.expand(len(cached), -1, -1)], dim=-1)

    def _append(self, k: Tensor, v: Tensor, positions_B1: Tensor) -> None:
        slots = self.positions_BS.shape[1]
        self.used = min(slots, self.used + 1)
        if self.aligned:
            slot = self.longest - 1
            if slot >= slots:
                slot = self.sinks + (slot - self.sinks) % (slots - self.sinks)
            at = (slice(None), slice(slot, slot + 1))
        else:
            slot_B1 = positions_B1 % slots
            if self.sinks:
                turned_B1 = self.sinks + (positions_B1 - self.sinks) % (slots - self.sinks)
                slot_B1 = torch.where(positions_B1 < self.sinks, positions_B1, turned_B1)
            at = (torch.arange(len(k), device=k.device)[:, None], slot_B1)
        self.keys_BSGK[at] = k.to(self.keys_BSGK.dtype)
        self.values_BSGK[at] = v.to(self.values_BSGK.dtype)
        self.positions_BS[at] = positions_B1

    def _write(
        self, k: Tensor, v: Tensor, positions_BT: Tensor, segments_BT: Tensor | None
    ) -> None:
        """Fill each slot with the latest token of the last document that maps to it, if any."""
        batch, slots = self.positions_BS.shape
        if self.aligned and self.longest <= slots:
            at = (slice(None), slice(self.longest - k.shape[1], self.longest))
            self.keys_BSGK[at], self.values_BSGK[at] = k, v
            self.positions_BS[at], self.used = positions_BT, self.longest
            return
        position_BS, index_BS = self._latest(positions_BT)
        written_BS = index_BS >= 0
        index_BS = index_BS.clamp(min=0)
        if segments_BT is not None:
            written_BS &= segments_BT.gather(1, index_BS) == segments_BT[:, -1:]
            ended_B1 = segments_BT[:, -1:] != self.document_B[:, None]
            self.positions_BS.masked_fill_(ended_B1, -1)
        rows_B1 = torch.arange(batch, device=k.device)[:, None]
        mask = written_BS[..., None, None]
        for cache, x in ((self.keys_BSGK, k), (self.values_BSGK, v)):
            cache.copy_(torch.where(mask, x[rows_B1, index_BS].to(cache.dtype), cache))
        self.positions_BS.copy_(torch.where(written_BS, position_BS, self.positions_BS))
        self.used = min(slots, self.used + k.shape[1])

    def _latest(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The latest position that maps to each slot, and its index among these tokens.

        The index is negative where no token of this call can fill the slot.
        """
        (batch, slots), length = self.positions_BS.shape, positions_BT.shape[1]
        slot_S = torch.arange(slots, device=positions_BT.device)
        last_B1 = positions_BT[:, -1:].expand(batch, 1)
        back_BS = last_B1 - slot_S
        turned_BS = back_BS % (slots - self.sinks)
        back_BS = torch.where(slot_S < self.sinks, back_BS, turned_BS)
        position_BS = last_B1 - back_BS
        real_BS = (back_BS >= 0) & (position_BS >= slot_S)
        return position_BS, torch.where(real_BS, length - 1 - back_BS, -1)

    def _check_room(self, positions_BT: Tensor) -> None:
        """Refuse a document that outgrows its slots: the oldest keys would be lost without a word.

        The device is asked only where the host-side bound, which never forgets ended documents, is
        exceeded.
        """
        self.longest += positions_BT.shape[1]
        if self.longest <= self.max_len:
            return
        self.longest = int(positions_BT.max()) + 1
        if self.longest > self.max_len:
            raise ValueError(
                f"a document of {self.longest} tokens doesn't fit a state of "
                f"max_len={self.max_len}: make the state longer (init_state)"
            )


def own_keys(
    positions_BT: Tensor,
    segments_BT: Tensor | None,
    window: int | None,
    sinks: int = 0,
    causal: bool = True,
) -> OwnKeys | None:
    """Which keys of one call each of its queries sees; None where plain causal order says it."""
    length = positions_BT.shape[1]
    if causal and segments_BT is None and (window is None or window >= length):
        return None
    return OwnKeys(positions_BT, segments_BT, window, sinks, causal)
