"""Softmax attention: grouped queries, (partial) rotary positions, QK-norm, window, sinks, gate.

Legend: B batch, T time, S keys, D width, H heads, G key/value heads, K head dim, X channels.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..convolution import ShortConvolution
from ..cost import Cost, linear_flops
from ..kernels import flash_documents, flash_varlen
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.rotary import Positions, rotate
from ..ops.sight import OwnKeys, as_mask, earlier_keys
from ..ops.softmax import scattered_attention, softmax_attention
from ..ops.twin import runs_step_by_step
from ..segments import document_positions
from .key_cache import KeyCache, own_keys


@dataclass
class AttentionConfig(MixerConfig):
    """Settings of softmax attention.

    Attributes:
        num_heads: query heads; null is dim / head_dim.
        num_kv_heads: key/value heads; must divide num_heads; null is num_heads.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        window: tokens that a query sees, itself included; null is all.
        sinks: first tokens of each document that stay in sight beyond the window (arXiv
            2309.17453).
        rope_base: base of the rotary embedding; null is no position embedding (NoPE).
        rope_fraction: part of each head's dims that rotary positions turn (partial RoPE).
        qk_norm: normalise queries and keys per head (arXiv 2302.05442).
        conv_width: width of a residual short convolution on queries, keys and values; 0 is none.
        gate: multiply what the heads read by `sigmoid(W_g x)`, elementwise (arXiv 2505.06708).
        causal: false lets every token see its whole document, later tokens too. Such a backbone
            keeps no state and can't write word by word: it fills answers in, in one pass.
    """

    argument: ClassVar[str | None] = "window"
    kind: str = "attn"
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    sinks: int = 0
    rope_base: float | None = 10000.0
    rope_fraction: float = 1.0
    qk_norm: bool = True
    conv_width: int = 0
    gate: bool = False
    causal: bool = True

    def build(self, site: Site) -> "Attention":
        """Make the module; raises ValueError where heads or window don't work out."""
        heads, head_dim = site.heads(self.num_heads, self.head_dim)
        kv_heads = heads if self.num_kv_heads is None else self.num_kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"num_kv_heads={kv_heads} doesn't divide num_heads={heads}: choose a divisor"
            )
        self._check_sight()
        self._check_rotation(head_dim)
        return Attention(self, site.dim, heads, kv_heads, head_dim)

    def rotated(self, head_dim: int) -> int:
        """Return how many dims of each head turn with the position."""
        return 0 if self.rope_base is None else int(self.rope_fraction * head_dim)

    def _check_sight(self) -> None:
        if not self.causal and (self.window is not None or self.sinks):
            raise ValueError(
                f"causal=false sees the whole document, but window={self.window} and sinks="
                f"{self.sinks} narrow it: set window=null and sinks=0, or causal=true"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1 token, or null for all")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ValueError(
                f"sinks={self.sinks} must be at least 0 tokens, and 0 where window is null: then "
                "all stay in sight"
            )

    def _check_rotation(self, head_dim: int) -> None:
        if not 0 < self.rope_fraction <= 1:
            raise ValueError(
                f"rope_fraction={self.rope_fraction} must be above 0 and at most 1; for no "
                "positions set rope_base=null"
            )
        rotated = self.rotated(head_dim)
        if self.rope_base is None or (rotated and rotated % 2 == 0):
            return
        if self.rope_fraction < 1:
            raise ValueError(
                f"rope_fraction={self.rope_fraction} of head_dim={head_dim} is {rotated} dims: "
                "rotary positions turn pairs; choose an even, positive number of them"
            )
        raise ValueError(
            f"head_dim={head_dim} is odd: rotary positions turn pairs; choose an even "
            "head_dim or rope_base=null"
        )


@dataclass
class SlidingWindowConfig(AttentionConfig):
    """Settings of sliding-window attention: softmax attention whose window is always set.

    A layout may say it in short: `swa:256` has a window of 256 tokens.
    """

    kind: str = "swa"
    window: int | None = 64

    def build(self, site: Site) -> "Attention":
        """Make the module; raises ValueError where there is no window, or as `AttentionConfig`."""
        if self.window is None:
            raise ValueError("window=null sees all tokens: set a window, or use the mixer attn")
        return super().build(site)


class Attention(Mixer):
    """Softmax attention within documents, causal or not (arXiv 1706.03762, 2305.13245)."""

    def __init__(
        self, config: AttentionConfig, dim: int, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim, self.causal = config, dim, config.causal
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.sizes = [self.heads * self.head_dim] + 2 * [self.kv_heads * self.head_dim]
        self.shown_width = sum(self.sizes) if config.causal else 0
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.gate = nn.Linear(dim, self.sizes[0], bias=False) if config.gate else None
        self.output = nn.Linear(self.sizes[0], dim, bias=False)
        self.norms = nn.ModuleList(RMSNorm(self.head_dim) for _ in range(2 * config.qk_norm))
        self.conv = ShortConvolution(sum(self.sizes), config.conv_width, residual=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        init_linear(self.qkv)
        if self.gate is not None:
            init_linear(self.gate)
        init_output(self.output)
        self.conv.reset_parameters()
        for norm in self.norms:
            norm.reset_parameters()  # pyright: ignore[reportCallIssue]

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: KeyCache | None = None,
    ) -> tuple[Tensor, KeyCache | None]:
        """Mix over time; see `Mixer.forward`."""
        if state is None:
            out = self._from_scratch(x_BTD, segments_BT)
        else:
            out = self._with_state(x_BTD, segments_BT, state)
        out_BTX = out.flatten(2)
        if self.gate is not None:
            out_BTX = out_BTX * self.gate(x_BTD).sigmoid()
        return self.output(out_BTX), state

    def _from_scratch(self, x_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
        length, config = x_BTD.shape[1], self.config
        positions_BT = document_positions(segments_BT, length, None, x_BTD.device)
        projected, _ = self.conv(self.qkv(x_BTD), segments_BT, None)
        positions = slice(length) if segments_BT is None else positions_BT
        q, k, v = self._heads(projected, positions, length)
        flash = None if config.sinks else flash_varlen(v)
        if flash is not None and not runs_step_by_step():
            half = q.to(v.dtype), k.to(v.dtype), v
            return flash_documents(flash, *half, segments_BT, config.window, self.causal)
        narrowed = config.window, config.sinks
        visible = own_keys(positions_BT, segments_BT, *narrowed, causal=self.causal)
        return self._attend(q, k, v, visible)

    def _with_state(self, x_BTD: Tensor, segments_BT: Tensor | None, state: KeyCache) -> Tensor:
        self._refuse_state()
        q, keys, values, visible = self._with_keys(self.qkv(x_BTD), segments_BT, state)
        return self._attend(q, keys.to(q.dtype), values.to(q.dtype), visible)

    def _with_keys(
        self, raw_BTX: Tensor, segments_BT: Tensor | None, state: KeyCache
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | OwnKeys | None]:
        """Write tokens into the state; return their queries, and all that they may see."""
        positions_BT = state.begin(segments_BT, raw_BTX.shape[1])
        projected, state.tail_BWD = self.conv(raw_BTX, segments_BT, state.tail_BWD)
        q, k, v = self._heads(projected, state.rotary_positions(positions_BT), state.max_len)
        return q, *state.update(k, v, positions_BT, segments_BT, self.config.window)

    def among(
        self,
        x_GMD: Tensor,
        own: tuple[tuple[Tensor, Tensor], Tensor | None],
        shown_BTX: Tensor,
        segments_BT: Tensor | None,
        state: KeyCache | None,
    ) -> tuple[Tensor, Tensor, KeyCache | None]:
        """Mix some positions; see `models.depth.going.Showing`."""
        (rows_G1, index_GM), real_GM = own
        raw_GMX = self.qkv(x_GMD)
        if real_GM is not None:
            raw_GMX = torch.where(real_GM[..., None], raw_GMX, shown_BTX[rows_G1, index_GM])
        shown_BTX = shown_BTX.index_put((rows_G1, index_GM), raw_GMX.to(shown_BTX.dtype))
        q, keys, values, visible = self._read_all(shown_BTX, segments_BT, state)
        seen_BTS = as_mask(visible)
        if seen_BTS is None and q.shape[1] > 1:
            seen_BTS = earlier_keys(None, q.shape[1], None, q.device)
        if seen_BTS is not None:
            seen_BTS = seen_BTS.expand(len(q), -1, -1)[rows_G1, index_GM]
        rows_G = rows_G1[:, 0]
        out = scattered_attention(q[rows_G1, index_GM], keys[rows_G], values[rows_G], seen_BTS)
        out_GMX = out.flatten(2)
        if self.gate is not None:
            out_GMX = out_GMX * self.gate(x_GMD).sigmoid()
        return self.output(out_GMX), shown_BTX, state

    def _read_all(
        self, raw_BTX: Tensor, segments_BT: Tensor | None, state: KeyCache | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | OwnKeys | None]:
        """Queries of all positions, the keys and values that there are, and who sees which."""
        if state is not None:
            return self._with_keys(raw_BTX, segments_BT, state)
        length = raw_BTX.shape[1]
        positions_BT = document_positions(segments_BT, length, None, raw_BTX.device)
        projected, _ = self.conv(raw_BTX, segments_BT, None)
        positions = slice(length) if segments_BT is None else positions_BT
        q, k, v = self._heads(projected, positions, length)
        return q, k, v, own_keys(positions_BT, segments_BT, self.config.window, self.config.sinks)

    def _heads(
        self, projected_BTX: Tensor, positions: Positions, max_positions: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes, config = [self.heads, self.kv_heads], self.config
        heads = projected_BTX.unflatten(-1, (-1, self.head_dim))
        qk, v = heads.split([sum(sizes), self.kv_heads], dim=2)
        if config.qk_norm:
            parts = zip(self.norms, qk.split(sizes, dim=2), strict=True)
            qk = torch.cat([norm(part) for norm, part in parts], dim=2)
        if config.rope_base is not None:
            width = config.rotated(self.head_dim)
            qk = rotate(qk, positions, config.rope_base, max_positions, width)
        q, k = qk.split(sizes, dim=2)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | OwnKeys | None) -> Tensor:
        window, sinks = self.config.window, self.config.sinks
        return softmax_attention(q, k, v, visible=visible, window=window, sinks=sinks)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> KeyCache:
        """Return empty slots: as many as tokens, or as the window and its sinks hold.

        Raises:
            ValueError: with `causal=false` what was read would change with what comes.
        """
        self._refuse_state()
        return KeyCache.empty(
            (self.kv_heads, self.head_dim, self.head_dim),
            self.conv.init_tail(batch, device, dtype),
            max_len,
            window=self.config.window,
            sinks=self.config.sinks,
            dtype=dtype,
        )

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, and scores and sums over the keys in sight."""
        window = self.config.window
        seen = min(context, window + self.config.sinks) if window else context
        inner = self.sizes[0]
        flops = linear_flops(self.dim, sum(self.sizes)) + linear_flops(inner, self.dim)
        flops += linear_flops(self.dim, inner) * self.config.gate
        flops += 4 * inner * seen + self.conv.flops
        state_bytes = 4 * (2 * self.kv_heads * self.head_dim * seen + self.conv.state_size)
        return Cost(flops, parameter_bytes(self), state_bytes * self.causal)

    def prefill_cost(self, length: int) -> Cost:
        """Cost of reading `length` tokens at once; without `causal` each of them sees all."""
        if self.causal:
            return super().prefill_cost(length)
        return self.cost(length) + Cost(flops=(length - 1) * self.cost(length).flops)

    def _refuse_state(self) -> None:
        if not self.causal:
            raise ValueError(
                "causal=false: every token sees its whole document, so nothing can be kept to go "
                "on from: such a backbone can't write word by word, it fills answers in "
                "(objective.fill=true); read the document from scratch, or set causal=true"
            )
