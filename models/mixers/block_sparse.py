"""What block-sparse mixers share: heads, blocks counted from each document's start, and memory.

Legend: B batch, T time, S keys, N summaries, C blocks completed by a call, J tokens of a block,
D width, H heads, G key/value heads, K head dim.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import RMSNorm, init_linear, init_output
from ..mixer import Mixer, MixerConfig, Site
from ..ops.rotary import Positions, rotate
from ..ops.sparse import SparseView, TokenView
from ..ops.sparse_blocks import Blocks
from ..ops.twin import runs_step_by_step
from ..segments import document_positions
from .key_cache import KeyCache, own_keys


@dataclass
class BlockSparseConfig(MixerConfig):
    """Settings that block-sparse mixers share.

    Attributes:
        num_heads: query heads; null is dim / head_dim.
        num_kv_heads: key/value heads; must divide num_heads; null is num_heads.
        head_dim: width of a head; null is dim / num_heads, or the backbone's where that is null.
        block_size: tokens of a block, counted from each document's start.
        num_selected: blocks that a query reads at most, its own included.
        rope_base: base of the rotary embedding; null is no position embedding (NoPE).
        qk_norm: normalise queries and keys per head (arXiv 2302.05442).
    """

    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    block_size: int = 8
    num_selected: int = 8
    rope_base: float | None = 10000.0
    qk_norm: bool = True

    def head_sizes(self, site: Site) -> tuple[int, int, int]:
        """Return heads, key/value heads and head dim.

        Raises:
            ValueError: where heads, blocks or positions don't work out.
        """
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
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size} must be at least 1 token")
        if self.num_selected < 1:
            raise ValueError(
                f"num_selected={self.num_selected} must be at least 1 block: a query's own"
            )
        return heads, kv_heads, head_dim


@dataclass(kw_only=True)
class BlockCache(KeyCache):
    """Keys and values of the current document, and summaries of its complete blocks.

    Attributes:
        summary_keys_BNGK: what each block is known by; slot = block index.
        summary_values_BNGK: what each block holds; width 0 where summaries are only scored.
    """

    summary_keys_BNGK: Tensor
    summary_values_BNGK: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and summaries held."""
        held = (self.summary_keys_BNGK, self.summary_values_BNGK)
        return super().nbytes + sum(x.numel() * x.element_size() for x in held)

    def write_summaries(self, blocks: Blocks, keys_BCGK: Tensor, values_BCGK: Tensor) -> None:
        """Keep the blocks that a call completed of the document that it ends in."""
        pairs = ((self.summary_keys_BNGK, keys_BCGK), (self.summary_values_BNGK, values_BCGK))
        if blocks.shared:
            for cache, x in pairs:
                cache[:, blocks.held : blocks.held + blocks.new] = x
            return
        real_BN, place_BN = blocks.kept(self.summary_keys_BNGK.shape[1])
        rows_B1 = torch.arange(len(place_BN), device=place_BN.device)[:, None]
        for cache, x in pairs:
            written = torch.where(real_BN[..., None, None], x[rows_B1, place_BN], cache)
            cache.copy_(written)


class BlockSparse(Mixer):
    """A softmax mixer that reads summaries of blocks, and the tokens of some of them.

    Args:
        config: its settings.
        dim: model width.
        sizes: heads, key/value heads, head dim.
        summary_width: width of what a summary holds besides its key.
    """

    def __init__(
        self,
        config: BlockSparseConfig,
        dim: int,
        sizes: tuple[int, int, int],
        summary_width: int,
    ) -> None:
        super().__init__()
        self.settings, self.dim, self.summary_width = config, dim, summary_width
        self.heads, self.kv_heads, self.head_dim = sizes
        self.inner, self.kv_inner = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv = nn.Linear(dim, self.inner + 2 * self.kv_inner, bias=False)
        self.output = nn.Linear(self.inner, dim, bias=False)
        self.norms = nn.ModuleList(RMSNorm(self.head_dim) for _ in range(2 * config.qk_norm))

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        init_linear(self.qkv)
        init_output(self.output)
        for norm in self.norms:
            norm.reset_parameters()  # pyright: ignore[reportCallIssue]

    @abstractmethod
    def summarise(self, k_BCJGK: Tensor, v_BCJGK: Tensor) -> tuple[Tensor, Tensor]:
        """Return a key and a value `[B, C, G, K]` for each complete block of tokens."""

    @abstractmethod
    def read(self, q: Tensor, x_BTD: Tensor, view: SparseView | TokenView) -> Tensor:
        """Read what the view shows, `[B, T, H, K]`; `x_BTD` are the inputs of these queries."""

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: BlockCache | None = None,
    ) -> tuple[Tensor, BlockCache | None]:
        """Mix over time; see `Mixer.forward`."""
        if state is None:
            q, view = self._from_scratch(x_BTD, segments_BT)
        else:
            q, view = self._with_state(x_BTD, segments_BT, state)
        if view.blocks.in_place or runs_step_by_step():
            steps = range(x_BTD.shape[1])
            outputs = [
                self.read(q[:, t : t + 1], x_BTD[:, t : t + 1], TokenView(view, t)) for t in steps
            ]
            out = torch.cat(outputs, dim=1)
        else:
            out = self.read(q, x_BTD, view)
        return self.output(out.flatten(2)), state

    def _from_scratch(self, x_BTD: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, SparseView]:
        batch, length, _ = x_BTD.shape
        positions_BT = document_positions(segments_BT, length, None, x_BTD.device)
        positions = slice(length) if segments_BT is None else positions_BT
        q, k, v = self._heads(x_BTD, positions, length)
        visible = own_keys(positions_BT, segments_BT, None)
        positions_BT = positions_BT.expand(batch, -1)
        shared = segments_BT is None
        blocks = Blocks(self.settings.block_size, positions_BT, segments_BT, shared=shared)
        return q, SparseView(blocks, k, v, *self._complete(blocks, k, v), visible)

    def _with_state(
        self, x_BTD: Tensor, segments_BT: Tensor | None, state: BlockCache
    ) -> tuple[Tensor, SparseView]:
        length, used, size = x_BTD.shape[1], state.used, self.settings.block_size
        positions_BT = state.begin(segments_BT, length)
        q, k, v = self._heads(x_BTD, state.rotary_positions(positions_BT), state.max_len)
        k, v, visible = state.update(k, v, positions_BT, segments_BT)
        held = min(used // size, state.summary_keys_BNGK.shape[1])
        blocks = Blocks(
            size, positions_BT, segments_BT, used, held, state.aligned, length == 1, True
        )
        new = self._complete(blocks, k, v)
        past = state.summary_keys_BNGK[:, :held], state.summary_values_BNGK[:, :held]
        summaries = [torch.cat([a.to(b.dtype), b], dim=1) for a, b in zip(past, new, strict=True)]
        state.write_summaries(blocks, *(x.to(state.keys_BSGK.dtype) for x in new))
        return q, SparseView(blocks, k, v, summaries[0], summaries[1], visible)

    def _complete(self, blocks: Blocks, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Summaries of the blocks that this call completes."""
        members_BCJ = blocks.members_BCJ
        rows_B11 = torch.arange(len(members_BCJ), device=k.device)[:, None, None]
        return self.summarise(k[rows_B11, members_BCJ], v[rows_B11, members_BCJ])

    def _heads(
        self, x_BTD: Tensor, positions: Positions, max_positions: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes, config = [self.heads, self.kv_heads], self.settings
        heads = self.qkv(x_BTD).unflatten(-1, (-1, self.head_dim))
        qk, v = heads.split([sum(sizes), self.kv_heads], dim=2)
        if config.qk_norm:
            parts = zip(self.norms, qk.split(sizes, dim=2), strict=True)
            qk = torch.cat([norm(part) for norm, part in parts], dim=2)
        if config.rope_base is not None:
            qk = rotate(qk, positions, config.rope_base, max_positions)
        q, k = qk.to(v.dtype).split(sizes, dim=2)
        return q, k, v

    def keys_read(self, context: int) -> int:
        """Tokens of selected blocks that a query with this context reads, its own block's too."""
        size, own = self.settings.block_size, (self.settings.num_selected - 1)
        earlier = (context - 1) // size
        return min(own, earlier) * size + context - earlier * size

    def state_bytes(self, context: int) -> int:
        """Bytes of keys, values and summaries after so many tokens, float32."""
        summaries = context // self.settings.block_size * (self.head_dim + self.summary_width)
        return 4 * self.kv_heads * (2 * self.head_dim * context + summaries)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> BlockCache:
        """Return empty slots: for as many tokens, and for the blocks that they complete."""
        tail = torch.zeros(batch, 0, 0, device=device, dtype=dtype)
        widths = (self.kv_heads, self.head_dim, self.head_dim)
        cache = KeyCache.empty(widths, tail, max_len, dtype=dtype)
        shape = (batch, max_len // self.settings.block_size, self.kv_heads)
        keys, values = (
            torch.zeros(*shape, width, device=device, dtype=dtype)
            for width in (self.head_dim, self.summary_width)
        )
        return BlockCache(**vars(cache), summary_keys_BNGK=keys, summary_values_BNGK=values)
