"""Attention to chosen blocks of the past: the three readings that NSA and MoBA are made of.

A query may read the summaries of complete blocks, the tokens of blocks that it selects, and the
tokens of a window. Each reading exists twice. `SparseView` answers for all queries of a call: it
selects by masks over all keys, so what is *executed* is dense causal attention (and as many masks
as there are selections), whatever the sparsity. `TokenView` answers for one query and gathers the
keys that it reads and no others: it decodes, and it is the step-by-step twin, on which a FLOP
counter sees what the sparse mathematics costs.

Equal scores are settled by order: the earlier block wins, in both.

Legend: B batch, T time, S keys, N summary slots, H heads, G key/value heads, P selections of the
heads that share keys, Q heads that share a selection (H = G P Q), K head dim, M selected blocks,
W keys that a token gathers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import find
from .sight import OwnKeys, as_mask
from .softmax import softmax_attention
from .sparse_blocks import Blocks
from .twin import runs_step_by_step


@dataclass(frozen=True)
class Selection:
    """Blocks that each query reads, besides its own.

    Attributes:
        slots_BGPTM: their summary slots.
        real_BGPTM: whether there is such a block: early queries have fewer.
    """

    slots_BGPTM: Tensor
    real_BGPTM: Tensor


@dataclass(frozen=True)
class SparseView:
    """What all queries of a call may read.

    Attributes:
        blocks: where blocks stand.
        keys_BSGK: keys.
        values_BSGK: values.
        summary_keys_BNGK: what blocks are known by.
        summary_values_BNGK: what they hold; width 0 where summaries are only scored.
        visible_BTS: keys of each query's document that are no later ones, made or unmade.
    """

    blocks: Blocks
    keys_BSGK: Tensor
    values_BSGK: Tensor
    summary_keys_BNGK: Tensor
    summary_values_BNGK: Tensor
    visible_BTS: Tensor | OwnKeys | None

    @property
    def index_BN(self) -> Tensor:
        """Index within its document of the block of each slot."""
        return self.blocks.index_BN

    def score(self, q: Tensor) -> Tensor:
        """Products of the queries `[B, T, H, K]` with the summaries, `[B, G, H / G, T, N]`."""
        return _score(q, self.summary_keys_BNGK)

    def read_summaries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attend over summaries; zero where there is none yet.

        Returns:
            `[B, T, H, K]`, and the probabilities `[B, G, H / G, T, N]`.
        """
        shown = self.blocks.shown_BTN[:, None, None]
        return _read_summaries(q, self.summary_keys_BNGK, self.summary_values_BNGK, shown)

    def select(self, scores_BGPTN: Tensor, most: int) -> Selection:
        """Choose up to `most` blocks before a query's own, those of the highest scores."""
        return _select(scores_BGPTN, self.blocks.earlier_BTN, most)

    def read_selected(self, q: Tensor, chosen: Selection) -> Tensor:
        """Attend over the tokens of the chosen blocks and of the query's own, `[B, T, H, K]`."""
        kernel = self.kernel("selected_blocks", q)
        shares = q.shape[2] // self.keys_BSGK.shape[2]
        if kernel is not None and chosen.slots_BGPTM.shape[2] == 1 and shares % 16 == 0:
            index_BGTM = self._index_of(chosen.slots_BGPTM[:, :, 0])
            picked = (index_BGTM, chosen.real_BGPTM[:, :, 0])
            picked = (x.transpose(1, 2).contiguous() for x in picked)
            return kernel(q, self.keys_BSGK, self.values_BSGK, *picked, **self.kernel_options)
        seen = self._tokens_seen(chosen)
        groups, shares = seen.shape[1:3]
        q_BTGPQK = q.unflatten(2, (groups, shares, -1))
        folded = q_BTGPQK.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        k, v = (
            x.transpose(1, 2)[:, :, None].expand(-1, -1, shares, -1, -1).flatten(0, 2)[:, :, None]
            for x in (self.keys_BSGK, self.values_BSGK)
        )
        out = softmax_attention(folded, k, v, visible=seen.flatten(0, 2))
        out = out.unflatten(0, (-1, groups, shares)).permute(0, 3, 1, 2, 4, 5)
        return out.flatten(2, 4)

    def kernel(self, name: str, q: Tensor) -> Callable[..., Tensor] | None:
        """The fused kernel of a reading, where this call is all that there is of its documents."""
        several = q.shape[1] > 1 and not self.blocks.past and not runs_step_by_step()
        return find(name, self.values_BSGK, q) if several else None

    @property
    def kernel_options(self) -> dict[str, Any]:
        """What fused kernels ask of blocks."""
        return {"block_size": self.blocks.size, "segments": self.blocks.segments_BT}

    def _index_of(self, slots_BGTM: Tensor) -> Tensor:
        """Index of blocks within their documents."""
        index_BN = self.index_BN[:, None, None].expand(*slots_BGTM.shape[:3], -1)
        return index_BN.gather(-1, slots_BGTM)

    def read_window(self, q: Tensor, window: int) -> Tensor:
        """Attend over the last `window` tokens, `[B, T, H, K]`."""
        blocks = self.blocks
        past_S = torch.arange(blocks.past, device=q.device)
        own_BT = blocks.positions_BT
        positions_BS = torch.cat([past_S.expand(len(own_BT), -1), own_BT], dim=1)
        near_BTS = own_BT[..., None] - positions_BS[:, None] < window
        seen = near_BTS & self._past
        return softmax_attention(q, self.keys_BSGK, self.values_BSGK, visible=seen, window=window)

    @property
    def _past(self) -> Tensor:
        visible = as_mask(self.visible_BTS)
        if visible is not None:
            return visible
        length, device = self.blocks.length, self.keys_BSGK.device
        return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()

    def _tokens_seen(self, chosen: Selection) -> Tensor:
        """Whether each query reads each key, `[B, G, P, T, S]`."""
        slots, key_slots_BS = self.summary_keys_BNGK.shape[1], self.blocks.key_slots_BS
        shape = chosen.slots_BGPTM.shape[:-1]
        none = torch.zeros(*shape, slots + 1, dtype=torch.bool, device=key_slots_BS.device)
        picked = none.scatter(-1, chosen.slots_BGPTM, chosen.real_BGPTM)
        of_keys = key_slots_BS[:, None, None, None].expand(*shape, -1)
        own_BTS = key_slots_BS[:, None] == self.blocks.own_BT[..., None]
        return (picked.gather(-1, of_keys) | own_BTS[:, None, None]) & self._past[:, None, None]


class TokenView:
    """What the query at one time may read, gathered.

    Where all rows stand at the same position the numbers of slots and keys are exactly those that
    the mathematics reads; elsewhere they are bounds, and masks do the rest.
    """

    def __init__(self, view: SparseView, time: int) -> None:
        blocks = self.blocks = view.blocks
        self.view, self.time, self.shared = view, time, blocks.shared
        self.context = blocks.past + time + 1
        slots = blocks.held + blocks.new
        self.complete = self.context // blocks.size if self.shared else slots
        self.earlier = (self.context - 1) // blocks.size if self.shared else slots
        self.position_B1 = blocks.positions_BT[:, time, None]

    @property
    def index_BN(self) -> Tensor:
        """Index within its document of the block of each slot."""
        return self.blocks.index_BN[:, : self.complete]

    def score(self, q: Tensor) -> Tensor:
        """Products of the query `[B, 1, H, K]` with the summaries, `[B, G, H / G, 1, N]`."""
        return _score(q, self.view.summary_keys_BNGK[:, : self.complete])

    def read_summaries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attend over summaries: `[B, 1, H, K]`, and probabilities `[B, G, H / G, 1, N]`."""
        shown = None if self.shared else self.blocks.shown_BTN[:, None, None, self.time, None]
        keys, values = (
            x[:, : self.complete]
            for x in (self.view.summary_keys_BNGK, self.view.summary_values_BNGK)
        )
        return _read_summaries(q, keys, values, shown)

    def select(self, scores_BGPTN: Tensor, most: int) -> Selection:
        """Choose up to `most` blocks before the query's own, those of the highest scores."""
        earlier_BTN = self.blocks.earlier_BTN[:, self.time, None, : self.complete]
        return _select(scores_BGPTN, earlier_BTN, min(most, self.earlier))

    def read_selected(self, q: Tensor, chosen: Selection) -> Tensor:
        """Attend over the tokens of the chosen blocks and of the query's own, `[B, 1, H, K]`."""
        size, slots_BGPM = self.blocks.size, chosen.slots_BGPTM.squeeze(3)
        shape = slots_BGPM.shape[:-1]
        index_BGPN = self.index_BN[:, None, None].expand(*shape, -1)
        first = index_BGPN.gather(-1, slots_BGPM)[..., None] * size
        within_J = torch.arange(size, device=q.device)
        picked = (first + within_J).flatten(-2)
        real = chosen.real_BGPTM.squeeze(3).repeat_interleave(size, dim=-1)
        own_J = within_J[: (self.context - 1) % size + 1] if self.shared else within_J
        own_BJ = self.position_B1 // size * size + own_J
        own = own_BJ[:, None, None].expand(*shape, -1)
        positions = torch.cat([picked, own], dim=-1)
        here_B111 = self.position_B1[:, None, None]
        mask = torch.cat([real, own <= here_B111], dim=-1)
        back = (here_B111 - positions).clamp(min=0)  # what is masked must point somewhere
        return self._read(q, back, mask)

    def read_window(self, q: Tensor, window: int) -> Tensor:
        """Attend over the last `window` tokens, `[B, 1, H, K]`."""
        back_W = torch.arange(min(self.context, window) - 1, -1, -1, device=q.device)
        groups = self.view.keys_BSGK.shape[2]
        back = back_W.expand(len(q), groups, 1, -1)
        return self._read(q, back, back <= self.position_B1[:, None, None])

    def _read(self, q: Tensor, back_BGPW: Tensor, mask_BGPW: Tensor) -> Tensor:
        """Attend over the keys that stand so many tokens back, where the mask says so."""
        here_B111 = self.position_B1[:, None, None]
        index = self.blocks.locate(self.time, here_B111, back_BGPW)[..., None]
        shares = back_BGPW.shape[2]
        k, v = (
            x.transpose(1, 2)[:, :, None]
            .expand(-1, -1, shares, -1, -1)
            .gather(3, index.expand(-1, -1, -1, -1, x.shape[-1]))
            for x in (self.view.keys_BSGK, self.view.values_BSGK)
        )
        q_BGPQK = q[:, 0].unflatten(1, (*back_BGPW.shape[1:3], -1))
        scores = (q.shape[-1] ** -0.5 * q_BGPQK) @ k.mT
        if not self.shared:
            scores = scores.masked_fill(~mask_BGPW[..., None, :], float("-inf"))
        out = scores.softmax(dim=-1).to(v.dtype) @ v
        return out.flatten(1, 3)[:, None]


def _score(q: Tensor, keys_BNGK: Tensor) -> Tensor:
    q_BGRTK = q.unflatten(2, (keys_BNGK.shape[2], -1)).permute(0, 2, 3, 1, 4)
    return (q.shape[-1] ** -0.5 * q_BGRTK) @ keys_BNGK.permute(0, 2, 3, 1)[:, :, None]


def _read_summaries(
    q: Tensor, keys_BNGK: Tensor, values_BNGK: Tensor, shown: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores = _score(q, keys_BNGK)
    if shown is not None:  # a query without summaries must yield zero, not NaN
        scores = scores.masked_fill(~shown, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(dim=-1)
    if shown is not None:
        probabilities = probabilities * shown
    values = values_BNGK.transpose(1, 2)[:, :, None]
    out = probabilities.to(values.dtype) @ values
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3), probabilities


def _select(scores_BGPTN: Tensor, earlier_BTN: Tensor, most: int) -> Selection:
    earlier = earlier_BTN[:, None, None]
    scores = scores_BGPTN.masked_fill(~earlier, float("-inf"))
    slots = scores.argsort(dim=-1, descending=True, stable=True)[..., :most]
    return Selection(slots, earlier.expand(scores.shape).gather(-1, slots))
