"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    c_s = norm(W_c x_s),  r_s = rotate(W_r x_s),  k_sh = [W_kh c_s, r_s],  v_sh = W_vh c_s
    o_th = sum_s softmax_s((K + R)^-1/2 q_th . k_sh) v_sh

Only the latent `c` and the key part `r`, which all heads share, are remembered. What is counted is
the *absorbed* form (section 2.1.2), which reads the latents as they are, `q_th . k_sh = (W_kh^T
q_th) . c_s + ..`: nothing of the past is multiplied out again. Many tokens at once run the expanded
form, which makes each head's keys and values, the same numbers by another order of products: it
needs `2 H (2K + R)` FLOPs for each key in sight, where the absorbed one needs `2 H (2L + R)`.

Legend: B batch, T time, S keys, D width, H heads, K head dim (of values too), R rotary dims,
L latent width, X channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import RMSNorm, init_linear, init_output, parameter_bytes
from ..mixer import Mixer, MixerConfig, Site
from ..ops.rotary import Positions, rotate
from ..ops.sight import OwnKeys
from ..ops.softmax import softmax_attention
from ..ops.twin import runs_step_by_step
from ..segments import document_positions
from .key_cache import KeyCache, own_keys


@dataclass
class LatentAttentionConfig(MixerConfig):
    """Settings of multi-head latent attention.

    Attributes:
        num_heads: heads; null is dim / head_dim.
        head_dim: width of a head without its rotary part, and of its values; null is dim /
            num_heads, or the backbone's where that is null.
        kv_rank: width of the latent that keys and values are made from; null is 4 head_dim.
        q_rank: width of a latent that queries are made from; null makes them from the input.
        rope_dim: width of the key part that carries positions and that all heads share; null is
            about head_dim / 2, 0 leaves it out (then nothing carries positions: NoPE).
        rope_base: base of the rotary embedding; null keeps the shared part but doesn't rotate it
            (NoPE as in Kimi Linear, arXiv 2510.26692).
    """

    kind: str = "mla"
    num_heads: int | None = None
    head_dim: int | None = None
    kv_rank: int | None = None
    q_rank: int | None = None
    rope_dim: int | None = None
    rope_base: float | None = 10000.0

    def build(self, site: Site) -> "LatentAttention":
        """Make the module; raises ValueError where heads, ranks or rotary dims don't work out."""
        heads, head_dim = site.heads(self.num_heads, self.head_dim)
        for name, rank in (("kv_rank", self.kv_rank), ("q_rank", self.q_rank)):
            if rank is not None and rank < 1:
                raise ValueError(f"{name}={rank} must be at least 1, or null")
        rope_dim = head_dim // 4 * 2 if self.rope_dim is None else self.rope_dim
        if rope_dim < 0 or (self.rope_base is not None and rope_dim % 2):
            raise ValueError(
                f"rope_dim={rope_dim} must be even and at least 0: rotary positions turn pairs"
            )
        return LatentAttention(self, site.dim, heads, head_dim, rope_dim)


class LatentAttention(Mixer):
    """Softmax attention over keys and values that are made from one small latent each token."""

    folded = ("keys", "values")

    def __init__(
        self, config: LatentAttentionConfig, dim: int, heads: int, head_dim: int, rope_dim: int
    ) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.head_dim, self.rope_dim = head_dim, rope_dim
        self.rank = rank = config.kv_rank or 4 * head_dim
        self.inner = heads * head_dim
        query_width = config.q_rank or dim
        self.query_down = nn.Linear(dim, query_width, bias=False) if config.q_rank else None
        self.query_norm = RMSNorm(query_width) if config.q_rank else None
        self.query = nn.Linear(query_width, heads * (head_dim + rope_dim), bias=False)
        self.latent = nn.Linear(dim, rank + rope_dim, bias=False)
        self.latent_norm = RMSNorm(rank)
        self.keys = nn.Linear(rank, self.inner, bias=False)
        self.values = nn.Linear(rank, self.inner, bias=False)
        self.output = nn.Linear(self.inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        for linear in (self.query_down, self.query, self.latent, self.keys, self.values):
            if linear is not None:
                init_linear(linear)
        for norm in (self.query_norm, self.latent_norm):
            if norm is not None:
                norm.reset_parameters()
        init_output(self.output)

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: KeyCache | None = None,
    ) -> tuple[Tensor, KeyCache | None]:
        """Mix over time; see `Mixer.forward`."""
        length = x_BTD.shape[1]
        if state is None:
            positions_BT = document_positions(segments_BT, length, None, x_BTD.device)
            positions = slice(length) if segments_BT is None else positions_BT
            q, latents = self._project(x_BTD, positions, length)
            visible = own_keys(positions_BT, segments_BT, None)
        else:
            positions_BT = state.begin(segments_BT, length)
            positions = state.rotary_positions(positions_BT)
            q, new = self._project(x_BTD, positions, state.max_len)
            latents, _, visible = state.update(new, new[..., :0], positions_BT, segments_BT)
        decodes = state is not None and length == 1
        attend = self._absorbed if decodes or runs_step_by_step() else self._expanded
        return self.output(attend(q, latents.to(q.dtype), visible).flatten(2)), state

    def _project(
        self, x_BTD: Tensor, positions: Positions, max_positions: int
    ) -> tuple[Tensor, Tensor]:
        """Queries `[B, T, H, K + R]`, and what is remembered of each token, `[B, T, 1, L + R]`."""
        queried = x_BTD
        if self.query_down is not None and self.query_norm is not None:
            queried = self.query_norm(self.query_down(x_BTD))
        q = self.query(queried).unflatten(-1, (self.heads, -1))
        latent, shared = self.latent(x_BTD)[:, :, None].split([self.rank, self.rope_dim], dim=-1)
        latent = self.latent_norm(latent)
        base = self.config.rope_base
        if base is not None and self.rope_dim:
            plain, turned = q.split([self.head_dim, self.rope_dim], dim=-1)
            both = rotate(torch.cat([turned, shared], dim=2), positions, base, max_positions)
            turned, shared = both.split([self.heads, 1], dim=2)
            q = torch.cat([plain, turned], dim=-1)
        return q, torch.cat([latent, shared.to(latent.dtype)], dim=-1)

    def _expanded(self, q: Tensor, latents: Tensor, visible: Tensor | OwnKeys | None) -> Tensor:
        """Make keys and values of each head; what many tokens at once do."""
        latent, shared = latents[:, :, 0].split([self.rank, self.rope_dim], dim=-1)
        k = self.keys(latent).unflatten(-1, (self.heads, -1))
        v = self.values(latent).unflatten(-1, (self.heads, -1))
        shared = shared[:, :, None].expand(-1, -1, self.heads, -1)
        k = torch.cat([k, shared.to(k.dtype)], dim=-1)
        return softmax_attention(q, k, v, visible=visible)

    def _absorbed(self, q: Tensor, latents: Tensor, visible: Tensor | OwnKeys | None) -> Tensor:
        """Read the latents as the keys and values of one head that all queries share."""
        plain, turned = q.split([self.head_dim, self.rope_dim], dim=-1)
        keys_HKL, values_HKL = (
            linear.weight.unflatten(0, (self.heads, -1)) for linear in (self.keys, self.values)
        )
        plain = torch.einsum("bthk,hkl->bthl", plain, keys_HKL)
        q, scale = torch.cat([plain, turned], dim=-1), (self.head_dim + self.rope_dim) ** -0.5
        # Fused attention wants values as wide as keys: it reads the rotary part along, for nothing.
        values = latents[..., : self.rank] if runs_step_by_step() else latents
        read = softmax_attention(q, latents, values, visible=visible, scale=scale)[..., : self.rank]
        return torch.einsum("bthl,hkl->bthk", read, values_HKL)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> KeyCache:
        """Return empty slots for latents, as many as tokens."""
        tail = torch.zeros(batch, 0, 0, device=device, dtype=dtype)
        return KeyCache.empty((1, self.rank + self.rope_dim, 0), tail, max_len, dtype=dtype)

    def cost(self, context: int) -> Cost:
        """Cost of one token in the absorbed form: projections, and scores and sums over latents."""
        width, rank = self.heads * (self.head_dim + self.rope_dim), self.rank
        queries = linear_flops(self.query.in_features, width)
        if self.query_down is not None:
            queries += linear_flops(self.dim, self.query.in_features)
        flops = queries + linear_flops(self.dim, rank + self.rope_dim)
        flops += 2 * linear_flops(rank, self.inner) + linear_flops(self.inner, self.dim)
        flops += 2 * self.heads * (2 * rank + self.rope_dim) * context
        return Cost(flops, parameter_bytes(self), 4 * (rank + self.rope_dim) * context)
