"""Softmax attention: grouped queries, rotary or no positions, QK-norm, sliding window.

Legend: B batch, T time, S key slots, D width, H heads, G key/value heads, K head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..convolution import ShortConvolution
from ..cost import Cost, linear_flops
from ..kernels import flash_documents, flash_varlen
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.rotary import Positions, rotate
from ..ops.softmax import earlier_keys, softmax_attention, visible_keys
from ..ops.twin import runs_step_by_step
from ..segments import document_positions
from ..state import State, advance, continues, empty_counters, keep


@dataclass
class AttentionConfig(MixerConfig):
    """Settings of softmax attention.

    Attributes:
        num_heads: query heads; null is dim / head_dim.
        num_kv_heads: key/value heads; must divide num_heads; null is num_heads.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        window: tokens that a query sees, itself included; null is all.
        rope_base: base of the rotary embedding; null is no position embedding (NoPE).
        qk_norm: normalise queries and keys per head (arXiv 2302.05442).
        conv_width: width of a residual short convolution on queries, keys and values; 0 is none.
    """

    kind: str = "attn"
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    rope_base: float | None = 10000.0
    qk_norm: bool = True
    conv_width: int = 0

    def build(self, site: Site) -> "Attention":
        """Make the module; raises ValueError where heads or window don't work out."""
        heads, head_dim = site.heads(self.num_heads, self.head_dim)
        kv_heads = heads if self.num_kv_heads is None else self.num_kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"num_kv_heads={kv_heads} doesn't divide num_heads={heads}: choose a divisor"
            )
        if self.rope_base is not None and head_dim % 2:
            raise ValueError(
                f"head_dim={head_dim} is odd: rotary positions turn pairs; choose an even "
                "head_dim or rope_base=null"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1 token, or null for all")
        return Attention(self, site.dim, heads, kv_heads, head_dim)


@dataclass
class AttentionState(State):
    """Keys and values of the current document, in a ring of slots.

    Attributes:
        keys_BSGK: cached keys, `slot = position % S`.
        values_BSGK: cached values.
        positions_BS: position held by each slot, -1 where empty.
        tail_BWD: inputs that the short convolution still needs; width 0 without one.
        max_len: longest document that fits, tokens.
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
    longest: int = 0
    used: int = 0
    aligned: bool = True

    def put(self, rows: Tensor, other: State) -> None:
        """Overwrite these rows, in place, by the rows of another state of the same capacity."""
        assert isinstance(other, AttentionState)
        super().put(rows, other)
        self.used = max(self.used, other.used)
        self.aligned = self.aligned and other.aligned and self.longest == other.longest
        self.longest = max(self.longest, other.longest)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and convolution inputs held."""
        held = (self.keys_BSGK, self.values_BSGK, self.tail_BWD)
        return sum(x.numel() * x.element_size() for x in held)


class Attention(Mixer):
    """Causal softmax attention within documents (arXiv 1706.03762, 2305.13245)."""

    def __init__(
        self, config: AttentionConfig, dim: int, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.sizes = [self.heads * self.head_dim] + 2 * [self.kv_heads * self.head_dim]
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.output = nn.Linear(self.sizes[0], dim, bias=False)
        self.norms = nn.ModuleList(RMSNorm(self.head_dim) for _ in range(2 * config.qk_norm))
        self.conv = ShortConvolution(sum(self.sizes), config.conv_width, residual=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        init_linear(self.qkv)
        init_output(self.output)
        self.conv.reset_parameters()
        for norm in self.norms:
            norm.reset_parameters()  # pyright: ignore[reportCallIssue]

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: AttentionState | None = None,
    ) -> tuple[Tensor, AttentionState | None]:
        """Mix over time; see `Mixer.forward`."""
        if state is None:
            length = x_BTD.shape[1]
            positions_BT = document_positions(segments_BT, length, None, x_BTD.device)
            projected, _ = self.conv(self.qkv(x_BTD), segments_BT, None)
            q, k, v = self._heads(
                projected, slice(length) if segments_BT is None else positions_BT, length
            )
            out = self._from_scratch(q, k, v, positions_BT, segments_BT)
            return self.output(out.flatten(2)), None
        return self._with_state(x_BTD, segments_BT, state)

    def _from_scratch(
        self, q: Tensor, k: Tensor, v: Tensor, positions_BT: Tensor, segments_BT: Tensor | None
    ) -> Tensor:
        """Attend within documents, through flash-attn where `models.kernels` found it sound."""
        window, flash = self.config.window, flash_varlen(v)
        if flash is not None and not runs_step_by_step():
            return flash_documents(flash, q.to(v.dtype), k.to(v.dtype), v, segments_BT, window)
        visible = self._visible(positions_BT, segments_BT)
        return softmax_attention(q, k, v, visible=visible, window=window)

    def _heads(
        self, projected_BTX: Tensor, positions: Positions, max_positions: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes = [self.heads, self.kv_heads]
        heads = projected_BTX.unflatten(-1, (-1, self.head_dim))
        qk, v = heads.split([sum(sizes), self.kv_heads], dim=2)
        if self.config.qk_norm:
            parts = zip(self.norms, qk.split(sizes, dim=2), strict=True)
            qk = torch.cat([norm(part) for norm, part in parts], dim=2)
        if self.config.rope_base is not None:
            qk = rotate(qk, positions, self.config.rope_base, max_positions)
        q, k = qk.split(sizes, dim=2)
        return q, k, v

    def _visible(self, positions_BT: Tensor, segments_BT: Tensor | None) -> Tensor | None:
        """Which keys of this call each query sees; None where plain causal order says it all."""
        window = self.config.window
        if segments_BT is None and (window is None or window >= positions_BT.shape[1]):
            return None
        return earlier_keys(segments_BT, positions_BT.shape[1], window, positions_BT.device)

    def _with_state(
        self, x_BTD: Tensor, segments_BT: Tensor | None, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        kept_B = continues(state, segments_BT)
        if kept_B is not None:
            state.positions_BS.masked_fill_(~kept_B[:, None], -1)
            state.aligned = False
        length, start_B = x_BTD.shape[1], keep(state.position_B, kept_B)
        positions_BT = document_positions(segments_BT, length, start_B, x_BTD.device)
        _check_room(state, positions_BT)
        projected, state.tail_BWD = self.conv(
            self.qkv(x_BTD), segments_BT, keep(state.tail_BWD, kept_B)
        )
        same = slice(state.longest - length, state.longest)
        q, k, v = self._heads(projected, same if state.aligned else positions_BT, state.max_len)
        out = (
            self._decode(q, k, v, positions_BT, state)
            if length == 1
            else self._prefill(q, k, v, positions_BT, segments_BT, state)
        )
        state.document_B, state.position_B = advance(state, segments_BT, length, positions_BT)
        return self.output(out.flatten(2)), state

    def _decode(
        self, q: Tensor, k: Tensor, v: Tensor, positions_B1: Tensor, state: AttentionState
    ) -> Tensor:
        """Write one token into its slot, then attend over the slots: what they hold is in sight."""
        slots = state.positions_BS.shape[1]
        state.used = used = min(slots, state.used + 1)
        if state.aligned:
            slot = (state.longest - 1) % slots
            at = (slice(None), slice(slot, slot + 1))
        else:
            at = (torch.arange(q.shape[0], device=q.device)[:, None], positions_B1 % slots)
        state.keys_BSGK[at] = k.to(state.keys_BSGK.dtype)
        state.values_BSGK[at] = v.to(state.values_BSGK.dtype)
        state.positions_BS[at] = positions_B1
        held_B1S = None if state.aligned else state.positions_BS[:, None, :used] >= 0
        keys, values = state.keys_BSGK[:, :used], state.values_BSGK[:, :used]
        return softmax_attention(
            q, keys.to(q.dtype), values.to(q.dtype), visible=held_B1S, window=self.config.window
        )

    def _prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        state: AttentionState,
    ) -> Tensor:
        """Attend over the slots and the new tokens, then write the new tokens."""
        visible, keys, values = self._visible(positions_BT, segments_BT), k, v
        if state.used:
            shape = k.shape[1], self.config.window, k.device
            visible = earlier_keys(segments_BT, *shape)
            held_BS = state.positions_BS[:, : state.used]
            document_BS = state.document_B[:, None].expand(held_BS.shape)
            cached = visible_keys(
                positions_BT, held_BS, segments_BT, document_BS, self.config.window
            )
            visible = torch.cat([cached, visible.expand(*cached.shape[:2], -1)], dim=-1)
            keys = torch.cat([state.keys_BSGK[:, : state.used].to(k.dtype), k], dim=1)
            values = torch.cat([state.values_BSGK[:, : state.used].to(v.dtype), v], dim=1)
        out = softmax_attention(q, keys, values, visible=visible, window=self.config.window)
        self._write(k, v, positions_BT, segments_BT, state)
        return out

    def _write(
        self,
        k: Tensor,
        v: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        state: AttentionState,
    ) -> None:
        """Fill each slot with the latest token of the last document that maps to it, if any."""
        batch, slots = state.positions_BS.shape
        if state.aligned and state.longest <= slots:
            at = (slice(None), slice(state.longest - k.shape[1], state.longest))
            state.keys_BSGK[at], state.values_BSGK[at] = k, v
            state.positions_BS[at], state.used = positions_BT, state.longest
            return
        last_B = positions_BT[:, -1:].expand(batch, 1)
        # The latest position that maps to slot s, and how many tokens from the end it stands.
        back_BS = (last_B - torch.arange(slots, device=k.device)) % slots
        position_BS = last_B - back_BS
        index_BS = k.shape[1] - 1 - back_BS
        written_BS = (position_BS >= 0) & (index_BS >= 0)
        index_BS = index_BS.clamp(min=0)
        if segments_BT is not None:
            written_BS &= segments_BT.gather(1, index_BS) == segments_BT[:, -1:]
            ended_B1 = segments_BT[:, -1:] != state.document_B[:, None]
            state.positions_BS.masked_fill_(ended_B1, -1)
        rows_B1 = torch.arange(batch, device=k.device)[:, None]
        mask = written_BS[..., None, None]
        for cache, x in ((state.keys_BSGK, k), (state.values_BSGK, v)):
            cache.copy_(torch.where(mask, x[rows_B1, index_BS].to(cache.dtype), cache))
        state.positions_BS.copy_(torch.where(written_BS, position_BS, state.positions_BS))
        state.used = min(slots, state.used + k.shape[1])

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> AttentionState:
        """Return empty slots: as many as tokens, or as the window holds."""
        slots = min(max_len, self.config.window or max_len)
        shape = (batch, slots, self.kv_heads, self.head_dim)
        return AttentionState(
            *empty_counters(batch, device),
            keys_BSGK=torch.zeros(shape, device=device, dtype=dtype),
            values_BSGK=torch.zeros(shape, device=device, dtype=dtype),
            positions_BS=torch.full((batch, slots), -1, dtype=torch.long, device=device),
            tail_BWD=self.conv.init_tail(batch, device, dtype),
            max_len=max_len,
        )

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, and scores and sums over the keys in sight."""
        seen = min(context, self.config.window or context)
        flops = linear_flops(self.dim, sum(self.sizes)) + linear_flops(self.sizes[0], self.dim)
        flops += 4 * self.heads * self.head_dim * seen + self.conv.flops
        state_bytes = 4 * (2 * self.kv_heads * self.head_dim * seen + self.conv.state_size)
        return Cost(flops, parameter_bytes(self), state_bytes)


def _check_room(state: AttentionState, positions_BT: Tensor) -> None:
    """Refuse a document that outgrows its slots: the oldest keys would be lost without a word.

    The device is asked only where the host-side bound, which never forgets ended documents, is
    exceeded.
    """
    state.longest += positions_BT.shape[1]
    if state.longest <= state.max_len:
        return
    state.longest = int(positions_BT.max()) + 1
    if state.longest > state.max_len:
        raise ValueError(
            f"a document of {state.longest} tokens doesn't fit a state of max_len={state.max_len}:"
            " make the state longer (init_state)"
        )
