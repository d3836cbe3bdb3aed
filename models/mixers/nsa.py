"""Native sparse attention (NSA, arXiv 2502.11089, section 3).

    o_t = sum_c sigmoid(w_c . x_t) Attn(q_t, K^c_t, V^c_t),  c in {compress, select, window}  (5)

- compress: each complete block of keys, and of values, becomes one by a small network (7).
- select: the tokens of the query's own block, of the document's first block, and of the blocks of
  highest importance; that is the probability that the compressed branch gives a block, summed over
  the query heads that share keys (9, 10).
- window: the last tokens.

Blocks are counted from each document's start. Simpler than as published: compression and selection
share their blocks (length = stride = block size, so importances need no conversion), the three
branches share keys and values, and one block next to the query is always read instead of two. The
place of a token in its block, which the paper adds to keys before compression, enters as the bias
of the first layer: for a network over the whole block that is the same set of functions.

Legend: B batch, T time, C blocks, J tokens of a block, D width, H heads, G key/value heads,
K head dim.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import init_linear, parameter_bytes
from ..mixer import Site
from ..ops.sparse import SparseView, TokenView
from .block_sparse import BlockSparse, BlockSparseConfig


@dataclass
class NativeSparseConfig(BlockSparseConfig):
    """Settings of native sparse attention; see `BlockSparseConfig` for the others.

    Attributes:
        window: tokens that the window branch sees, the query's own included.
    """

    kind: str = "nsa"
    window: int = 32

    def build(self, site: Site) -> "NativeSparse":
        """Make the module; raises ValueError where heads, blocks or window don't work out."""
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1 token")
        return NativeSparse(self, site.dim, self.head_sizes(site))


class Compression(nn.Module):
    """One vector from the vectors of a block: `W_2 silu(W_1 [x_1 .. x_J] + b)`."""

    def __init__(self, head_dim: int, block_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(block_size * head_dim, head_dim)
        self.outer = nn.Linear(head_dim, head_dim, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights; the bias starts at zero."""
        init_linear(self.inner)
        init_linear(self.outer)
        nn.init.zeros_(self.inner.bias)

    def forward(self, x_BCJGK: Tensor) -> Tensor:
        """Return `[B, C, G, K]`."""
        joined = x_BCJGK.transpose(2, 3).flatten(-2)
        return self.outer(F.silu(self.inner(joined)))


class NativeSparse(BlockSparse):
    """The gated sum of compressed, selected and nearby attention (equation 5)."""

    def __init__(self, config: NativeSparseConfig, dim: int, sizes: tuple[int, int, int]) -> None:
        super().__init__(config, dim, sizes, summary_width=sizes[2])
        self.config = config
        self.gate = nn.Linear(dim, 3 * self.heads, bias=False)
        self.compress = nn.ModuleList(
            Compression(self.head_dim, config.block_size) for _ in range(2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the inner weights; the output starts at zero."""
        super().reset_parameters()
        init_linear(self.gate)
        for network in self.compress:
            network.reset_parameters()  # pyright: ignore[reportCallIssue]

    def summarise(self, k_BCJGK: Tensor, v_BCJGK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the compressed key and value of each block (equation 7)."""
        keys, values = self.compress
        return keys(k_BCJGK), values(v_BCJGK)

    def read(self, q: Tensor, x_BTD: Tensor, view: SparseView | TokenView) -> Tensor:
        """Attend in three ways, and add what the gates let through."""
        compressed, probabilities_BGRTN = view.read_summaries(q)
        importance = probabilities_BGRTN.detach().sum(dim=2, keepdim=True)
        first = (view.index_BN == 0)[:, None, None, None]
        importance = importance.masked_fill(first, torch.inf)
        chosen = view.select(importance, self.config.num_selected - 1)
        selected = view.read_selected(q, chosen)
        near = view.read_window(q, self.config.window)
        gates = self.gate(x_BTD).sigmoid().unflatten(-1, (3, self.heads, 1)).unbind(2)
        branches = zip(gates, (compressed, selected, near), strict=True)
        return torch.stack([gate * branch for gate, branch in branches]).sum(dim=0)

    def cost(self, context: int) -> Cost:
        """Cost of one token: projections, gates, and what the three branches read.

        The token that completes a block pays for its compression.
        """
        size, head_dim = self.config.block_size, self.head_dim
        flops = linear_flops(self.dim, self.inner + 2 * self.kv_inner + 3 * self.heads)
        flops += linear_flops(self.inner, self.dim)
        if context % size == 0:
            network = linear_flops(size * head_dim, head_dim) + linear_flops(head_dim, head_dim)
            flops += 2 * self.kv_heads * network
        read = context // size + self.keys_read(context) + min(context, self.config.window)
        flops += 4 * self.inner * read
        return Cost(flops, parameter_bytes(self), self.state_bytes(context))
